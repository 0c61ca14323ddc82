"""The hand-written inner step against automatic differentiation."""

import pytest
import torch
from torch import nn

from ddcore.matching.adjoint import batches_of, pull_back, run_inner
from ddcore.matching.cores import Core
from ddcore.matching.explicit import ExplicitConvNet, core_of
from ddcore.networks.convnet import ConvNet
from ddcore.networks.flat import FlatNetwork
from ddcore.task import generator


def world(shape, depth, width, dims, batch, dtype):
    """A network, a point with random scales and shifts, a batch, and a direction."""
    make = generator(depth, "explicit", *shape)
    network = FlatNetwork(ConvNet(*shape, dims, depth, width))
    network.module.to(dtype)
    theta = network.init(make).to(dtype)
    for name, part in network.split(theta).items():
        if part.ndim == 1 and "blocks" in name:
            part.add_(torch.randn(part.shape, generator=make, dtype=dtype) * 0.5)
    x, y = (torch.randn(batch, *rest, generator=make, dtype=dtype) for rest in (shape, (dims,)))
    b = torch.randn(len(theta), generator=make, dtype=dtype)
    return network, theta, x, y, b


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


SHAPES = [
    ((3, 8, 8), 1, 5, 4, 6),
    ((1, 8, 8), 3, 7, 3, 2),
    ((3, 16, 16), 4, 4, 2, 3),
    ((2, 9, 14), 2, 6, 5, 4),  # odd rows are dropped by the pooling
    ((3, 7, 11), 2, 4, 9, 3),  # odd at both depths, both ways
    ((1, 5, 6), 1, 4, 1, 1),  # one image, one target
]


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: "x".join(map(str, case[0])) + f"-depth{case[1]}")
def test_equals_automatic_differentiation_in_float64(case):
    network, theta, x, y, b = world(*case, torch.float64)
    ours, theirs = ExplicitConvNet(network), Core(network)
    kept = [t.clone() for t in (theta, x, y, b)]
    for found, expected in zip(ours.pull_back(theta, x, y, b), theirs.pull_back(theta, x, y, b), strict=True):
        assert found.shape == expected.shape
        assert distance(found, expected) < 1e-12
    assert all(torch.equal(t, was) for t, was in zip((theta, x, y, b), kept, strict=True))  # nothing that was given is written to


@pytest.mark.parametrize("case", SHAPES[1::2], ids=lambda case: "x".join(map(str, case[0])))
def test_is_as_exact_as_automatic_differentiation_in_float32(case):
    network, theta, x, y, b = world(*case, torch.float32)
    exact = [t.double() for t in (theta, x, y, b)]
    errors = []
    for core in (ExplicitConvNet, Core):
        errors.append(core(network).pull_back(theta, x, y, b))
    network.module.double()
    true = Core(network).pull_back(*exact)
    for ours, theirs, expected in zip(*errors, true, strict=True):
        assert distance(ours, expected) < max(2e-6, 3 * distance(theirs, expected))


def test_a_dead_network_has_no_gradient_in_its_images():
    """All shifts far below zero: no unit is alive, and nothing is divided by zero on the way."""
    network, theta, x, y, b = world((1, 8, 8), 2, 4, 3, 4, torch.float32)
    for name, part in network.split(theta).items():
        if name in ("blocks.1.bias", "blocks.5.bias"):
            part.fill_(-100.0)
    d_theta, d_x, d_y = ExplicitConvNet(network).pull_back(theta, x, y, b)
    assert torch.isfinite(d_theta).all()
    assert torch.equal(d_x, torch.zeros_like(x))
    assert d_y.norm() > 0  # the last bias still learns


def test_a_flat_image_is_no_division_by_zero():
    network, theta, x, y, b = world((1, 8, 8), 2, 4, 3, 4, torch.float64)
    x[0] = 0.0
    for found, expected in zip(ExplicitConvNet(network).pull_back(theta, x, y, b), Core(network).pull_back(theta, x, y, b), strict=True):
        assert distance(found, expected) < 1e-10


class Shifted(ConvNet):
    """Another network in a ConvNet's clothes."""

    def forward(self, x):
        return super().forward(x) + 1


def test_only_plain_convnets_are_written_by_hand():
    assert isinstance(core_of(FlatNetwork(ConvNet(1, 4, 4, 2, 1, 4))), ExplicitConvNet)
    others = (nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), ConvNet(1, 4, 4, 0, 1, 4), Shifted(1, 4, 4, 2, 1, 4))
    assert all(type(core_of(FlatNetwork(module))) is Core for module in others)
    with pytest.raises(TypeError, match="ConvNet students only"):
        ExplicitConvNet(FlatNetwork(others[0]))


@pytest.mark.parametrize("core", [ExplicitConvNet, Core])
def test_no_graph_outlives_a_step(core):
    """What autograd keeps alive at any time, by size, is the same for four inner steps and for forty."""
    network, theta, x, y, _ = world((1, 8, 8), 2, 4, 3, 6, torch.float32)
    rate = torch.tensor(0.05)

    def most_saved(steps):
        live = peak = 0

        class Saved:
            def __init__(self, tensor):
                nonlocal live, peak
                self.tensor, self.size = tensor, tensor.numel()
                live += self.size
                peak = max(peak, live)

            def __del__(self):
                nonlocal live
                live -= self.size

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            batches = batches_of(len(x), 4, steps, generator(0))
            run = run_inner(core(network), theta, x, y, rate, batches, 0.5)
            found = pull_back(core(network), run, x, y, rate, run.thetas[-1] - theta, 0.5)
        assert live == 0
        assert all(t.grad_fn is None for t in (found.images, found.targets, found.rate, found.start, *run.thetas, *run.velocities))
        return peak

    few, many = most_saved(4), most_saved(40)
    assert few == many > 0
