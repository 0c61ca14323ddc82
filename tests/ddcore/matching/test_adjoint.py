"""The adjoint against plain back-propagation through the whole unroll, in float64."""

import pytest
import torch

from ddcore.matching.adjoint import Inner, pull_back, run_inner
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.blocks.native import native_blocks
from ddcore.matching.cores import Core, inner_loss
from ddcore.matching.explicit import ExplicitConvNet
from ddcore.matching.losses import normalised_distance
from ddcore.networks.flat import build_student
from ddcore.specs import StudentSpec
from ddcore.task import generator

CORES = {
    "generic": Core,
    "eager": lambda network: ExplicitConvNet(network, EagerBlocks()),
    "native": lambda network: ExplicitConvNet(network, native_blocks()),
}


def full_unroll(network, start, images, targets, rate, batches, momentum, goal, augment):
    """The textbook way: keep every graph, differentiate once."""
    theta, velocity = start, torch.zeros_like(start)
    rates = rate if rate.ndim == 0 else rate.repeat_interleave(torch.tensor(network.layer_sizes))
    for step, batch in enumerate(batches):
        loss = inner_loss(network, theta, augment(images[batch], step), targets[batch])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = momentum * velocity + gradient
        theta = theta - rates * velocity
    loss = (theta - goal).square().sum() / (start.detach() - goal).square().sum()
    return loss, torch.autograd.grad(loss, (images, targets, rate, start))


def view(x, step):
    """A smooth augmentation that differs from step to step."""
    return torch.sin(x * (1.0 + 0.1 * step)) if step % 2 else x.flip(3)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("size", [(8, 8), (9, 10)])  # pooling drops the last row of an odd size
@pytest.mark.parametrize("layered", [False, True], ids=["one rate", "layers' rates"])
def test_equals_the_full_unroll_to_1e_12(core, momentum, steps, size, layered):
    make = generator(steps, "adjoint")
    network = build_student(StudentSpec(depth=2, width=5), (3, *size), 6)
    network.module.double()
    start = network.init(make).double().requires_grad_(True)
    goal = network.init(make).double()
    images = torch.randn(9, 3, *size, generator=make, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(9, 6, generator=make, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.3, dtype=torch.float64)
    if layered:
        rate = rate + 0.2 * torch.rand(len(network.layer_sizes), generator=make, dtype=torch.float64)
    rate.requires_grad_(True)
    batches = [torch.randperm(9, generator=make)[:4] for _ in range(steps)]
    loss, expected = full_unroll(network, start, images, targets, rate, batches, momentum, goal, view)

    plain = [t.detach() for t in (start, images, targets, rate)]
    run = run_inner(Inner(CORES[core](network), *plain[1:], batches, momentum, view), plain[0])
    value, end = normalised_distance(run.end, plain[0], goal)
    found = pull_back(run, end)

    assert torch.allclose(value, loss.detach(), rtol=1e-12)
    for got, want in zip((found.images, found.targets, found.rate, found.start), expected, strict=True):
        # The start also enters the loss's scale, which both sides hold fixed.
        error = (got - want).norm() / want.norm()
        assert error < 1e-12, error


def test_an_image_drawn_twice_counts_twice():
    make = generator(0, "twice")
    network = build_student(StudentSpec(depth=1, width=4), (1, 4, 4), 2)
    start, goal = network.init(make), network.init(make)
    images, targets = torch.randn(2, 1, 4, 4, generator=make), torch.randn(2, 2, generator=make)
    rate = torch.tensor(0.1)
    both = [torch.tensor([0]), torch.tensor([0])]
    run = run_inner(Inner(Core(network), images, targets, rate, both), start)
    _, end = normalised_distance(run.end, start, goal)
    found = pull_back(run, end)
    assert found.images[0].norm() > 0
    assert torch.equal(found.images[1], torch.zeros_like(images[1]))
