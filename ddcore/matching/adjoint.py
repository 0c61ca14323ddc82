"""The exact gradient of an unrolled SGD run in constant graph memory.

Inner run, heavy-ball SGD with one learned rate, from theta_0 and v_0 = 0 (Maclaurin et al. 1502.03492, without its reversal):

    g_t = grad_theta l(theta_t, x_t, y_t),   v_{t+1} = mu v_t + g_t,   theta_{t+1} = theta_t - eta v_{t+1}

Reverse run, from a = dL/dtheta_N and b = 0, for t = N-1 .. 0:

    d_eta -= <a, v_{t+1}>;   b <- b - eta a;   (a, d_x, d_y) += grad_{theta, x, y} <g_t, b>;   b <- mu b

The last line needs nothing but theta_t and the batch: two vectors a step are kept, one without momentum, and graphs never are. The
result equals back-propagation through the whole unroll up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddcore.matching.cores import Core


@dataclass
class InnerRun:
    """A finished inner run: its end, and what the reverse sweep needs."""

    thetas: list[Tensor]  # theta_0 .. theta_N, each [P]
    velocities: list[Tensor]  # v_1 .. v_N, each [P]
    batches: list[Tensor]  # indices into the synthetic set, one tensor a step


@dataclass(frozen=True)
class Gradients:
    """Derivatives of the outer loss; `start` is with respect to theta_0 (not used by matching, tested all the same)."""

    images: Tensor
    targets: Tensor
    rate: Tensor
    start: Tensor


def run_inner(
    core: Core, start: Tensor, images: Tensor, targets: Tensor, rate: Tensor, batches: Sequence[Tensor], momentum: float = 0.0
) -> InnerRun:
    """SGD from `start` [P] on images [m, c, h, w] and targets [m, d], one step for each tensor of indices in `batches`."""
    run = InnerRun([start], [], list(batches))
    for batch in run.batches:
        _, velocity = core.gradient(run.thetas[-1], images[batch], targets[batch])
        if momentum and run.velocities:
            velocity = velocity.add_(run.velocities[-1], alpha=momentum)
        run.velocities.append(velocity)
        run.thetas.append(run.thetas[-1] - rate * velocity)
    return run


def pull_back(core: Core, run: InnerRun, images: Tensor, targets: Tensor, rate: Tensor, end: Tensor, momentum: float = 0.0) -> Gradients:
    """Carry `end` = dL/dtheta_N [P] back through `run`; the other arguments as they were in `run_inner`."""
    a, b = end.clone(), torch.zeros_like(end)
    d_images, d_targets, d_rate = torch.zeros_like(images), torch.zeros_like(targets), torch.zeros_like(rate)
    for t in reversed(range(len(run.batches))):
        batch = run.batches[t]
        d_rate -= torch.dot(a, run.velocities[t])
        b = b - rate * a
        d_theta, d_x, d_y = core.pull_back(run.thetas[t], images[batch], targets[batch], b)
        a = a + d_theta
        d_images.index_add_(0, batch, d_x)
        d_targets.index_add_(0, batch, d_y)
        b = momentum * b
    return Gradients(d_images, d_targets, d_rate, a)


def batches_of(count: int, size: int, steps: int, random: torch.Generator) -> list[Tensor]:
    """`steps` batches of at most `size` indices below `count`: shuffled passes through the set, cut into pieces."""
    batches: list[Tensor] = []
    while len(batches) < steps:
        batches += torch.randperm(count, generator=random).split(min(size, count))
    return batches[:steps]
