"""The exact gradient of an unrolled SGD run in constant graph memory.

Inner run, heavy-ball SGD with a learned rate eta, from theta_0 and v_0 = 0 (Maclaurin et al. 1502.03492, without its reversal):

    g_t = grad_theta l(theta_t, x_t, y_t),   v_{t+1} = mu v_t + g_t,   theta_{t+1} = theta_t - eta v_{t+1}

Reverse run, from a = dL/dtheta_N and c = 0, for t = N-1 .. 0:

    c <- mu c + a;   d_eta -= <g_t, c>;   (a, d_x, d_y) -= eta grad_{theta, x, y} <g_t, c>

It needs nothing but theta_t and the batch: graphs are never kept. The result equals back-propagation through the whole unroll up to
rounding. eta is one number, or one for each layer: then <g_t, c> is taken layer by layer.

If L also reads the run's own moving average, bar_0 = theta_0 and bar_{t+1} = m bar_t + (1 - m) theta_{t+1}, then b = dL/dbar_N is
carried along: before each reverse step a += (1 - m) b, b <- m b; and a += b in the end.

What is kept on the way is a choice, and changes no bit of the result: the last `cached` steps keep what their pull-back reads; the
other steps repeat it; and theta_t itself is kept, on the device or in host memory, or only every k-th and the rest repeated.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ddcore.matching.cores import Core, Forward

Augment = Callable[[Tensor, int], Tensor]  # images of a batch [k, c, h, w] and the step; the same view whenever it is called again


@dataclass(frozen=True)
class Memory:
    """What an inner run keeps: the passes of its last `cached` steps; every theta_t on the device or in host memory, or a sparse few."""

    cached: int = 0
    thetas: Literal["device", "host", "sparse"] = "device"

    def words(self, steps: int) -> str:
        """For people, of a run of `steps` steps."""
        where = {"device": "all parameters on the device", "host": "parameters in host memory", "sparse": "parameters of a few steps"}
        return f"{self.cached} of {steps} inner steps keep their passes, {where[self.thetas]}"


@dataclass(frozen=True)
class Inner:
    """One inner run to make: images [m, c, h, w], targets [m, d], rate [] or [num_layers], indices of each step's batch."""

    core: Core
    images: Tensor
    targets: Tensor
    rate: Tensor
    batches: Sequence[Tensor]
    momentum: float = 0.0
    augment: Augment | None = None
    decay: float | None = None  # of the moving average of theta, if there is one
    pulse: Callable[[], None] = lambda: None  # called before each step, there and back; it may raise

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """What the network sees in `step`, without a graph."""
        rows = self.batches[step]
        x = self.images[rows]
        return (x if self.augment is None else self.augment(x, step).detach()), self.targets[rows]

    def before_augmenting(self, step: int, d_x: Tensor) -> Tensor:
        """From the gradient in what the network saw to the gradient in the images of the batch."""
        if self.augment is None:
            return d_x
        x = self.images[self.batches[step]].detach().requires_grad_(True)
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self.augment(x, step), x, d_x)
        return found

    @functools.cached_property  # read in every step, and one flat vector each time it is made
    def rates(self) -> Tensor:
        """The rate of every parameter: [], or [P] where each layer has its own."""
        return self.rate if self.rate.ndim == 0 else self.core.network.spread(self.rate)

    def step(self, t: int, theta: Tensor, velocity: Tensor | None) -> tuple[Forward, Tensor, Tensor]:
        """The derivatives at theta_t, theta_{t+1} and v_{t+1}."""
        self.pulse()
        # Asked for even where it is dropped: autograd rounds differently when it records, and what is kept must change no bit.
        forward = self.core.gradient(theta, *self.batch(t), keep=True)
        velocity = forward.gradient if velocity is None else torch.add(forward.gradient, velocity, alpha=self.momentum)
        return forward, torch.addcmul(theta, velocity, self.rates, value=-1), velocity


@dataclass
class InnerRun:
    """An inner run, and what is left of its way; each dictionary is by step. `pull_back` uses it up."""

    inner: Inner
    memory: Memory
    end: Tensor  # theta_N [P]
    average: Tensor  # bar_N [P]; theta_0 where none is kept
    thetas: dict[int, Tensor] = field(default_factory=dict)
    velocities: dict[int, Tensor] = field(default_factory=dict)  # where a stretch may begin again, with momentum
    gradients: dict[int, Tensor] = field(default_factory=dict)  # where layers have their own rates
    kept: dict[int, Any] = field(default_factory=dict)

    @property
    def stride(self) -> int:
        """Every how many steps theta is kept: about sqrt(N) of them, in stretches of about sqrt(N), when sparse."""
        return max(1, math.ceil(math.sqrt(len(self.inner.batches)))) if self.memory.thetas == "sparse" else 1

    def take(self, t: int) -> Tensor:
        """theta_t, which is then forgotten; where it was not kept, its stretch is run again."""
        if t not in self.thetas:
            first = t - t % self.stride
            theta, velocity = self.thetas[first], self.velocities.pop(first, None)
            for s in range(first, t):
                theta, next_velocity = self.inner.step(s, theta, velocity)[1:]
                velocity = next_velocity if self.inner.momentum else None
                self.thetas[s + 1] = theta
        return self.thetas.pop(t).to(self.end.device, non_blocking=True)


@dataclass(frozen=True)
class Gradients:
    """Derivatives of the outer loss; `start` is with respect to theta_0 (not used by matching, tested all the same)."""

    images: Tensor
    targets: Tensor
    rate: Tensor
    start: Tensor


def run_inner(inner: Inner, start: Tensor, memory: Memory = Memory()) -> InnerRun:
    """SGD from `start` [P], one step for each batch."""
    run, theta, velocity, steps = InnerRun(inner, memory, start, start), start, None, len(inner.batches)
    average = start
    for t in range(steps):
        if t % run.stride == 0:
            run.thetas[t] = _to_host(theta) if memory.thetas == "host" else theta
            if run.stride > 1 and velocity is not None:
                run.velocities[t] = velocity
        forward, theta, next_velocity = inner.step(t, theta, velocity)
        velocity = next_velocity if inner.momentum else None
        if t >= steps - memory.cached:
            run.kept[t] = forward.kept
        if inner.rate.ndim:
            run.gradients[t] = forward.gradient
        del forward  # else what it keeps would live on beside the next step's
        if inner.decay is not None:
            average = torch.lerp(theta, average, inner.decay)
    run.end, run.average = theta, average
    return run


def pull_back(run: InnerRun, end: Tensor, average: Tensor | None = None) -> Gradients:
    """Carry `end` = dL/dtheta_N [P], and `average` = dL/dbar_N [P] where L reads it, back to the start of `run`."""
    inner, rates, decay = run.inner, run.inner.rates, run.inner.decay
    a, b, c = end, None if decay is None else average, torch.zeros_like(end)
    d_images, d_targets, d_rate = torch.zeros_like(inner.images), torch.zeros_like(inner.targets), torch.zeros_like(inner.rate)
    for t in reversed(range(len(inner.batches))):
        inner.pulse()
        if b is not None and decay is not None:
            a, b = torch.add(a, b, alpha=1 - decay), b * decay
        c = torch.add(a, c, alpha=inner.momentum) if inner.momentum else a
        x, y = inner.batch(t)
        # One rate comes out of the derivative, layers' rates stay in.
        direction, outside = (c, inner.rate) if inner.rate.ndim == 0 else (rates * c, torch.ones_like(end[0]))
        found = inner.core.pull_back(run.take(t), x, y, direction, run.kept.pop(t, None))
        d_rate -= found.slope if inner.rate.ndim == 0 else _by_layer(inner, run.gradients.pop(t) * c)
        a = torch.addcmul(a, found.theta, outside, value=-1)
        d_images.index_add_(0, inner.batches[t], inner.before_augmenting(t, found.x) * -outside)
        d_targets.index_add_(0, inner.batches[t], found.y * -outside)
        del found
    return Gradients(d_images, d_targets, d_rate, a if b is None else a + b)


def _by_layer(inner: Inner, products: Tensor) -> Tensor:
    return torch.stack([part.sum() for part in products.split(inner.core.network.layer_sizes)])


def _to_host(theta: Tensor) -> Tensor:
    if theta.device.type == "cpu":
        return theta
    host = torch.empty(theta.shape, dtype=theta.dtype, pin_memory=True)  # a copy to pinned memory does not wait
    return host.copy_(theta, non_blocking=True)


def batches_of(count: int, size: int, steps: int, random: torch.Generator) -> list[Tensor]:
    """`steps` batches of at most `size` indices below `count`: shuffled passes through the set, cut into pieces."""
    batches: list[Tensor] = []
    while len(batches) < steps:
        batches += torch.randperm(count, generator=random).split(min(size, count))
    return batches[:steps]
