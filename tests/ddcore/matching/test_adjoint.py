"""The adjoint against plain back-propagation through the whole unroll, in float64."""

import pytest
import torch

from ddcore.matching.adjoint import pull_back, run_inner
from ddcore.matching.cores import Core, inner_loss
from ddcore.matching.explicit import ExplicitConvNet, core_of
from ddcore.matching.losses import normalised_distance
from ddcore.networks.flat import build_student
from ddcore.specs import StudentSpec
from ddcore.task import generator

CORES = {"autograd": Core, "explicit": ExplicitConvNet}


def full_unroll(network, start, images, targets, rate, batches, momentum, goal):
    """The textbook way: keep every graph, differentiate once."""
    theta, velocity = start, torch.zeros_like(start)
    for batch in batches:
        (gradient,) = torch.autograd.grad(inner_loss(network, theta, images[batch], targets[batch]), theta, create_graph=True)
        velocity = momentum * velocity + gradient
        theta = theta - rate * velocity
    loss = (theta - goal).square().sum() / (start.detach() - goal).square().sum()
    return loss, torch.autograd.grad(loss, (images, targets, rate, start))


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("size", [(8, 8), (9, 10)])  # pooling drops the last row of an odd size
def test_equals_the_full_unroll_to_1e_10(core, momentum, steps, size):
    make = generator(steps, "adjoint")
    network = build_student(StudentSpec(depth=2, width=5), (3, *size), 6)
    network.module.double()
    start = network.init(make).double().requires_grad_(True)
    goal = network.init(make).double()
    images = torch.randn(9, 3, *size, generator=make, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(9, 6, generator=make, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    batches = [torch.randperm(9, generator=make)[:4] for _ in range(steps)]
    loss, expected = full_unroll(network, start, images, targets, rate, batches, momentum, goal)

    plain = [t.detach() for t in (start, images, targets, rate)]
    run = run_inner(CORES[core](network), *plain, batches, momentum)
    value, end = normalised_distance(run.thetas[-1], plain[0], goal)
    found = pull_back(CORES[core](network), run, *plain[1:], end, momentum)

    assert torch.allclose(value, loss.detach(), rtol=1e-12)
    for got, want in zip((found.images, found.targets, found.rate, found.start), expected, strict=True):
        # The start also enters the loss's scale, which both sides hold fixed.
        error = (got - want).norm() / want.norm()
        assert error < 1e-10, error


def test_an_image_drawn_twice_counts_twice():
    make = generator(0, "twice")
    network = build_student(StudentSpec(depth=1, width=4), (1, 4, 4), 2)
    start, goal = network.init(make), network.init(make)
    images, targets = torch.randn(2, 1, 4, 4, generator=make), torch.randn(2, 2, generator=make)
    rate = torch.tensor(0.1)
    both = [torch.tensor([0]), torch.tensor([0])]
    core = core_of(network)
    run = run_inner(core, start, images, targets, rate, both)
    _, end = normalised_distance(run.thetas[-1], start, goal)
    found = pull_back(core, run, images, targets, rate, end)
    assert found.images[0].norm() > 0
    assert torch.equal(found.images[1], torch.zeros_like(images[1]))
