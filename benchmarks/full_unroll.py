"""The baseline: inner training as one graph that is kept whole, and back-propagation through all of it.

Written from the equations (MTT, 2203.11932, algorithm 1 and equation 2; MKDT, 2410.02116, equations 4 and 6), on flat parameters as the
authors' codes have them; nothing here is taken from `ddcore.matching`, which it is to be compared with.

    l(theta, x, y) = |f_theta(x) - y|^2, mean over batch and dimensions
    v_{t+1} = mu v_t + grad_theta l(theta_t, x_t, y_t)      theta_{t+1} = theta_t - eta v_{t+1}
    L = |theta_N - goal|^2 / |start - goal|^2
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class Problem:
    """One outer iteration: start, goal [P]; images [m, c, h, w]; targets [m, d]; rate [] or [num_layers]; indices of each batch."""

    start: Tensor
    goal: Tensor
    images: Tensor
    targets: Tensor
    rate: Tensor
    batches: Sequence[Tensor]
    momentum: float = 0.0
    augment: Callable[[Tensor, int], Tensor] | None = None


@dataclass(frozen=True)
class Answer:
    """The outer loss [] and its gradients; `start`, if asked for, is the one through theta_0 alone, with L's own start held fixed."""

    loss: Tensor
    images: Tensor
    targets: Tensor
    rate: Tensor
    start: Tensor | None


def full_unroll(module: nn.Module, problem: Problem, with_start: bool = False) -> Answer:
    """Run the inner steps on `module`'s function with their graphs kept, and differentiate the outer loss through all of them."""
    images, targets, rate, start = (
        v.detach().clone().requires_grad_() for v in (problem.images, problem.targets, problem.rate, problem.start)
    )
    theta, velocity = start, None
    for step, rows in enumerate(problem.batches):
        x = images[rows] if problem.augment is None else problem.augment(images[rows], step)
        loss = (functional_call(module, _named(module, theta), (x,)) - targets[rows]).square().mean()
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = gradient if velocity is None or not problem.momentum else problem.momentum * velocity + gradient
        theta = theta - _wide(module, rate) * velocity
    outer = (theta - problem.goal).square().sum() / (problem.start - problem.goal).square().sum()
    found = torch.autograd.grad(outer, (images, targets, rate, start) if with_start else (images, targets, rate))
    return Answer(outer.detach(), found[0], found[1], found[2], found[3] if with_start else None)


def _named(module: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """The parts of theta [P] under the names of the module's parameters, in its order."""
    parameters = dict(module.named_parameters())
    parts = theta.split([p.numel() for p in parameters.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(parameters.items(), parts, strict=True)}


def _wide(module: nn.Module, rate: Tensor) -> Tensor:
    """One rate as it is; one for each layer (a module with parameters of its own) repeated for the layer's parameters."""
    if rate.ndim == 0:
        return rate
    sizes = [sum(p.numel() for p in part.parameters(recurse=False)) for part in module.modules()]
    return torch.cat([one.expand(size) for one, size in zip(rate, [size for size in sizes if size], strict=True)])
