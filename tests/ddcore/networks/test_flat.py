"""A module as a function of one vector, and its initial vectors."""

import math

import pytest
import torch
from scipy.stats import kstest
from torch import nn

from ddcore.networks.convnet import ConvNet
from ddcore.networks.flat import FlatNetwork, build_student
from ddcore.networks.student_sizes import num_parameters
from ddcore.specs import StudentSpec
from ddcore.task import generator


def module_with(network, theta):
    own = ConvNet(3, 9, 8, 5, depth=2, channels=16)
    nn.utils.vector_to_parameters(theta, own.parameters())
    return own


def test_equals_the_module_with_those_parameters_and_leaves_its_own_alone():
    network = build_student(StudentSpec(depth=2, width=16), (3, 9, 8), 5)
    before = nn.utils.parameters_to_vector(network.module.parameters()).clone()
    theta = network.init(generator(0, "flat"))
    x = torch.randn(4, 3, 9, 8)
    own = module_with(network, theta)
    assert network.num_parameters == len(theta) == num_parameters(StudentSpec(depth=2, width=16), (3, 9, 8), 5)
    assert torch.equal(network(theta, x), own(x))
    assert torch.equal(network.features(theta, x), own.features(x))
    assert torch.equal(nn.utils.parameters_to_vector(network.module.parameters()), before)


def test_the_gradient_in_theta_is_the_modules():
    network = build_student(StudentSpec(depth=2, width=16), (3, 9, 8), 5)
    theta = network.init(generator(0, "flat")).requires_grad_(True)
    x = torch.randn(4, 3, 9, 8)
    own = module_with(network, theta.detach())
    (found,) = torch.autograd.grad(network(theta, x).square().sum(), theta)
    expected = torch.autograd.grad(own(x).square().sum(), list(own.parameters()))
    assert torch.allclose(found, nn.utils.parameters_to_vector(expected), rtol=1e-4, atol=1e-5)


def test_initial_vectors_follow_pytorchs_own_distributions():
    network = FlatNetwork(ConvNet(3, 8, 8, 40, depth=2, channels=16))
    drawn = [network.split(network.init(generator(seed, "init"))) for seed in range(40)]
    torch.manual_seed(0)
    fresh = [dict(ConvNet(3, 8, 8, 40, depth=2, channels=16).named_parameters()) for _ in range(40)]
    for name in network.names:
        ours = torch.cat([one[name].flatten() for one in drawn])
        theirs = torch.cat([one[name].detach().flatten() for one in fresh])
        if ours.std() == 0:
            assert torch.equal(ours, theirs), name
            continue
        layer = network.module.get_submodule(name.rpartition(".")[0])
        bound = 1 / math.sqrt(layer.weight[0].numel())
        assert ours.abs().max() <= bound
        for values in (ours, theirs):  # both are uniform in +-bound: one test for what we draw, one for what we take for granted
            assert kstest(values[:2000].numpy(), "uniform", args=(-bound, 2 * bound)).pvalue > 1e-4, name


def test_initial_vectors_depend_on_the_generator_alone():
    network = FlatNetwork(ConvNet(1, 4, 4, 3, depth=1, channels=4))
    torch.manual_seed(1)
    one = network.init(generator(5, "expert", 1))
    torch.manual_seed(2)
    assert torch.equal(one, network.init(generator(5, "expert", 1)))
    assert not torch.equal(one, network.init(generator(5, "expert", 2)))


def test_running_statistics_are_refused():
    with pytest.raises(ValueError, match="running statistics"):
        FlatNetwork(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))


def test_a_layer_without_a_known_start_is_refused():
    with pytest.raises(ValueError, match="no initialisation is known for PReLU"):
        FlatNetwork(nn.Sequential(nn.Linear(2, 2), nn.PReLU())).init(generator(0))
