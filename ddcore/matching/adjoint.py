"""The exact gradient of an unrolled SGD run in constant graph memory.

Inner run, heavy-ball SGD with one learned rate, from theta_0 and v_0 = 0 (Maclaurin et al. 1502.03492, without its reversal):

    g_t = d/dtheta mean((f(theta_t, x_t) - y_t)^2),   v_{t+1} = mu v_t + g_t,   theta_{t+1} = theta_t - eta v_{t+1}

Reverse run, from a = dL/dtheta_N and b = 0, for t = N-1 .. 0:

    d_eta -= <a, v_{t+1}>;   b <- b - eta a;   (a, d_x, d_y) += grad_{theta, x, y} <g_t, b>;   b <- mu b

The last line is one Hessian-vector product, and needs only the graph of a single step: theta_t and v_t are kept (two vectors a
step, one without momentum), graphs are not. The result equals back-propagation through the whole unroll up to rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (theta [P], x [b, c, h, w]) -> [b, d]


@dataclass
class InnerRun:
    """A finished inner run: its end, and what the reverse sweep needs."""

    thetas: list[torch.Tensor]  # theta_0 .. theta_N, each [P]
    velocities: list[torch.Tensor]  # v_1 .. v_N, each [P]
    batches: list[torch.Tensor]  # indices into the synthetic set, one tensor a step
    losses: list[torch.Tensor]  # the inner loss before each step, scalars still on the device


@dataclass(frozen=True)
class Gradients:
    """Derivatives of the outer loss; `start` is with respect to theta_0 (not used by matching, tested all the same)."""

    images: torch.Tensor
    targets: torch.Tensor
    rate: torch.Tensor
    start: torch.Tensor


def inner_loss(model: Model, theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared error, mean over batch and dimensions: the knowledge-distillation loss of MKDT (2410.02116, equation 4)."""
    return functional.mse_loss(model(theta, x), y)


def run_inner(
    model: Model,
    start: torch.Tensor,
    images: torch.Tensor,
    targets: torch.Tensor,
    rate: torch.Tensor,
    batches: Sequence[torch.Tensor],
    momentum: float = 0.0,
) -> InnerRun:
    """SGD from `start` [P] on images [m, c, h, w] and targets [m, d], one step for each tensor of indices in `batches`."""
    run = InnerRun([start.detach()], [], list(batches), [])
    velocity = torch.zeros_like(start)
    for batch in run.batches:
        theta = run.thetas[-1].requires_grad_(True)
        loss = inner_loss(model, theta, images[batch], targets[batch])
        (gradient,) = torch.autograd.grad(loss, theta)
        velocity = torch.add(gradient, velocity, alpha=momentum) if momentum else gradient
        run.velocities.append(velocity)
        run.thetas.append(theta.detach() - rate * velocity)
        run.losses.append(loss.detach())
    return run


def pull_back(
    model: Model,
    run: InnerRun,
    images: torch.Tensor,
    targets: torch.Tensor,
    rate: torch.Tensor,
    end: torch.Tensor,
    momentum: float = 0.0,
) -> Gradients:
    """Carry `end` = dL/dtheta_N [P] back through `run`; arguments as they were in `run_inner`."""
    a, b = end.clone(), torch.zeros_like(end)
    d_images, d_targets, d_rate = torch.zeros_like(images), torch.zeros_like(targets), torch.zeros_like(rate)
    for t in reversed(range(len(run.batches))):
        batch = run.batches[t]
        d_rate -= torch.dot(a, run.velocities[t])
        b = b - rate * a
        theta = run.thetas[t].detach().requires_grad_(True)
        x = images[batch].detach().requires_grad_(True)
        y = targets[batch].detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(inner_loss(model, theta, x, y), theta, create_graph=True)
        hessian_b, d_x, d_y = torch.autograd.grad(gradient, (theta, x, y), grad_outputs=b)
        a = a + hessian_b
        d_images.index_add_(0, batch, d_x)
        d_targets.index_add_(0, batch, d_y)
        b = momentum * b
    return Gradients(d_images, d_targets, d_rate, a)


def batches_of(count: int, size: int, steps: int, random: torch.Generator) -> list[torch.Tensor]:
    """`steps` batches of at most `size` indices below `count`: shuffled passes through the set, cut into pieces."""
    batches: list[torch.Tensor] = []
    while len(batches) < steps:
        batches += torch.randperm(count, generator=random).split(min(size, count))
    return batches[:steps]
