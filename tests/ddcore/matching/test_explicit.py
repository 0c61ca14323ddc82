"""The hand-written inner step against automatic differentiation."""

import logging

import pytest
import torch
from torch import nn

from ddcore.matching.blocks.eager import EagerBlocks
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


def explicit(network):
    return ExplicitConvNet(network, EagerBlocks())


def derivatives(core, theta, x, y, b):
    """All of them, from a pull-back that repeats the forward pass and from one that was handed it."""
    forward = core.gradient(theta, x, y, keep=True)
    again, handed = core.pull_back(theta, x, y, b), core.pull_back(theta, x, y, b, forward.kept)
    pairs = [(again.slope, handed.slope), (again.theta, handed.theta), (again.x, handed.x), (again.y, handed.y)]
    assert all(torch.equal(one, other) for one, other in pairs)
    return forward.loss, forward.gradient, again.slope, again.theta, again.x, again.y


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
    kept = [t.clone() for t in (theta, x, y, b)]
    ours, theirs = (derivatives(core, theta, x, y, b) for core in (explicit(network), Core(network)))
    for found, expected in zip(ours, theirs, strict=True):
        assert found.shape == expected.shape
        assert distance(found, expected) < 1e-12
    assert all(torch.equal(t, was) for t, was in zip((theta, x, y, b), kept, strict=True))  # nothing that was given is written to


@pytest.mark.parametrize("case", SHAPES[1::2], ids=lambda case: "x".join(map(str, case[0])))
def test_is_as_exact_as_automatic_differentiation_in_float32(case):
    network, theta, x, y, b = world(*case, torch.float32)
    exact = [t.double() for t in (theta, x, y, b)]
    errors = []
    for core in (explicit, Core):
        errors.append(derivatives(core(network), theta, x, y, b))
    network.module.double()
    true = derivatives(Core(network), *exact)
    for ours, theirs, expected in zip(*errors, true, strict=True):
        assert distance(ours, expected) < max(2e-6, 3 * distance(theirs, expected))


def test_a_dead_network_has_no_gradient_in_its_images():
    """All shifts far below zero: no unit is alive, and nothing is divided by zero on the way."""
    network, theta, x, y, b = world((1, 8, 8), 2, 4, 3, 4, torch.float32)
    for name, part in network.split(theta).items():
        if name in ("blocks.1.bias", "blocks.5.bias"):
            part.fill_(-100.0)
    found = explicit(network).pull_back(theta, x, y, b)
    assert torch.isfinite(found.theta).all()
    assert torch.equal(found.x, torch.zeros_like(x))
    assert found.y.norm() > 0  # the last bias still learns


def test_a_flat_image_is_no_division_by_zero():
    network, theta, x, y, b = world((1, 8, 8), 2, 4, 3, 4, torch.float64)
    x[0] = 0.0
    ours, theirs = (derivatives(core, theta, x, y, b) for core in (explicit(network), Core(network)))
    for found, expected in zip(ours, theirs, strict=True):
        assert distance(found, expected) < 1e-10


class Shifted(ConvNet):
    """Another network in a ConvNet's clothes."""

    def forward(self, x):
        return super().forward(x) + 1


def test_only_plain_convnets_are_written_by_hand_and_others_are_told_of(caplog):
    cpu = torch.device("cpu")
    assert isinstance(core_of(FlatNetwork(ConvNet(1, 4, 4, 2, 1, 4)), cpu), ExplicitConvNet)
    others = (nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), ConvNet(1, 4, 4, 0, 1, 4), Shifted(1, 4, 4, 2, 1, 4))
    caplog.set_level(logging.INFO)
    assert all(type(core_of(FlatNetwork(module), cpu)) is Core for module in others)
    assert [record.getMessage().split(" is not")[0] for record in caplog.records] == ["Sequential", "ConvNet", "Shifted"]
    with pytest.raises(TypeError, match="ConvNet students only"):
        explicit(FlatNetwork(others[0]))
