"""Pre-training is PyTorch's own SGD on the squared error, momentum and weight decay included."""

import pytest
import torch
from torch.nn.functional import mse_loss

from ddcore.evaluation.downstream import fit
from ddcore.evaluation.pretrain import initial, pretrain
from ddcore.matching.adjoint import batches_of
from ddcore.networks.flat import build_student
from ddcore.specs import StudentSpec
from ddcore.synthetic import SyntheticSet
from ddcore.task import generator

CPU = torch.device("cpu")


def make_set() -> SyntheticSet:
    draw = torch.Generator().manual_seed(0)
    return SyntheticSet(
        torch.rand(10, 1, 8, 8, generator=draw),
        torch.randn(10, 3, generator=draw),
        torch.tensor(0.1),
        torch.arange(10),
        {"mean": [0.4], "std": [0.3]},
    )


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.01)])
def test_equals_torch_optim_sgd(momentum: float, decay: float) -> None:
    data, network = make_set(), build_student(StudentSpec(depth=2, width=4), (1, 8, 8), 3)
    settings = {"steps": 9, "batch_size": 4, "momentum": momentum, "weight_decay": decay}
    calls: list[str] = []
    found = pretrain(network, data, 0.1, settings, 7, "random", calls.append, CPU)

    module = build_student(StudentSpec(depth=2, width=4), (1, 8, 8), 3).module
    torch.nn.utils.vector_to_parameters(initial(network, 7, CPU), module.parameters())
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=momentum, weight_decay=decay)
    losses = []
    for rows in batches_of(10, 4, 9, generator(7, "batches")):
        optimiser.zero_grad()
        loss = mse_loss(module((data.images[rows] - 0.4) / 0.3), data.targets[rows])
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    torch.testing.assert_close(found.theta, torch.nn.utils.parameters_to_vector(module.parameters()).detach(), rtol=1e-4, atol=1e-6)
    assert (found.first_loss, found.last_loss) == (pytest.approx(losses[0]), pytest.approx(losses[-1], rel=1e-4))
    assert len(calls) == 9


def test_layers_rates_are_parameter_groups_of_torch_optim_sgd() -> None:
    data, network = make_set(), build_student(StudentSpec(depth=2, width=4), (1, 8, 8), 3)
    settings = {"steps": 5, "batch_size": 4, "momentum": 0.9, "weight_decay": 0.01}
    by_layer = torch.tensor([0.02, 0.3, 0.1, 0.05, 0.2])
    found = pretrain(network, data, 0.1, settings, 7, "synthetic", lambda words: None, CPU, by_layer)
    torch.nn.utils.vector_to_parameters(initial(network, 7, CPU), network.module.parameters())
    layers = [network.module.get_submodule(name) for name in network.layer_names]
    groups = [{"params": list(layer.parameters()), "lr": float(rate)} for layer, rate in zip(layers, by_layer, strict=True)]
    optimiser = torch.optim.SGD(groups, momentum=0.9, weight_decay=0.01)
    for rows in batches_of(10, 4, 5, generator(7, "batches")):
        optimiser.zero_grad()
        mse_loss(network.module((data.images[rows] - 0.4) / 0.3), data.targets[rows]).backward()
        optimiser.step()
    expected = torch.nn.utils.parameters_to_vector(network.module.parameters()).detach()
    torch.testing.assert_close(found.theta, expected, rtol=1e-4, atol=1e-6)
    same = pretrain(network, data, 0.1, settings, 7, "synthetic", lambda words: None, CPU, torch.full((5,), 0.1))
    assert torch.equal(same.theta, pretrain(network, data, 0.1, settings, 7, "synthetic", lambda words: None, CPU).theta)


def test_fit_changes_channels_and_size_and_keeps_what_fits() -> None:
    draw = torch.Generator().manual_seed(0)
    colour = torch.randint(0, 256, (2, 3, 16, 16), generator=draw).to(torch.uint8)
    same = fit(colour, (3, 16, 16))
    torch.testing.assert_close(same, colour.float() / 255)
    grey = fit(colour, (1, 16, 16))
    torch.testing.assert_close(grey[:, 0], 0.299 * same[:, 0] + 0.587 * same[:, 1] + 0.114 * same[:, 2])
    assert torch.equal(fit(colour[:, :1], (3, 16, 16))[:, 2], same[:, 0])
    small = fit(colour, (3, 8, 8))
    assert small.shape == (2, 3, 8, 8)
    inner = same[:, :, 4:12, 4:12].mean((2, 3))
    torch.testing.assert_close(small[:, :, 2:6, 2:6].mean((2, 3)), inner, rtol=0.06, atol=0)
