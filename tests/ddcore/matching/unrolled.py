"""The adjoint beside the textbook way: every step's graph is kept, and the whole unroll differentiated once."""

import torch

from ddcore.matching.adjoint import Inner, pull_back, run_inner
from ddcore.matching.cores import inner_loss
from ddcore.matching.losses import normalised_distance
from ddcore.networks.flat import build_student
from ddcore.specs import StudentSpec
from ddcore.task import generator


def view(x, step):
    """A smooth augmentation that differs from step to step."""
    return torch.sin(x * (1.0 + 0.1 * step)) if step % 2 else x.flip(3)


def full_unroll(network, start, images, targets, rate, batches, momentum, goal):
    theta, velocity = start, torch.zeros_like(start)
    rates = rate if rate.ndim == 0 else rate.repeat_interleave(torch.tensor(network.layer_sizes))
    for step, batch in enumerate(batches):
        loss = inner_loss(network, theta, view(images[batch], step), targets[batch])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = momentum * velocity + gradient
        theta = theta - rates * velocity
    # The start also enters the loss's scale, which both sides hold fixed.
    loss = (theta - goal).square().sum() / (start.detach() - goal).square().sum()
    return loss.detach(), *torch.autograd.grad(loss, (images, targets, rate, start))


def adjoint_errors(core_of, steps, size, momentum=0.9, layered=False, count=9, batch=4, width=5):
    """In float64, relative: of the outer loss, and of its gradients in images, targets, rate and start."""
    make = generator(steps, "adjoint")
    network = build_student(StudentSpec(depth=2, width=width), (3, *size), 6)
    network.module.double()
    start, goal = network.init(make).double(), network.init(make).double()
    images = torch.randn(count, 3, *size, generator=make, dtype=torch.float64)
    targets = torch.randn(count, 6, generator=make, dtype=torch.float64)
    rate = torch.tensor(0.3, dtype=torch.float64)
    if layered:
        rate = rate + 0.2 * torch.rand(len(network.layer_sizes), generator=make, dtype=torch.float64)
    batches = [torch.randperm(count, generator=make)[:batch] for _ in range(steps)]
    leaves = [t.clone().requires_grad_(True) for t in (start, images, targets, rate)]
    expected = full_unroll(network, *leaves, batches, momentum, goal)

    run = run_inner(Inner(core_of(network), images, targets, rate, batches, momentum, view), start)
    value, end = normalised_distance(run.end, start, goal)
    found = pull_back(run, end)
    pairs = zip((value, found.images, found.targets, found.rate, found.start), expected, strict=True)
    return [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs]
