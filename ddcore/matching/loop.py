"""The outer loop: optimise synthetic images, targets and the inner rate so that training on them follows the experts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from ddcore.ahead import Ahead
from ddcore.checkpoint import read_checkpoint, write_checkpoint
from ddcore.data.differentiable import Views
from ddcore.errors import DdcoreError, Stopped
from ddcore.events import Reporter
from ddcore.experts.sgd import Regression
from ddcore.matching.adjoint import Inner, Memory, batches_of, pull_back, run_inner
from ddcore.matching.graphs import Replayed
from ddcore.matching.looks import Looks
from ddcore.matching.memory import exceeded, free_bytes, measure, plan_memory, ran_out
from ddcore.matching.outer import OuterLoss
from ddcore.matching.windows import Window, Windows, inner_decay
from ddcore.specs import ImprovedSpec, MatchingSpec
from ddcore.synthetic import mean_rate
from ddcore.transfer import send

LAYOUT = "matching 2"  # of checkpoints
CURVE_POINTS = 300
RATE_BOUND = 30.0  # the learned rate stays within this factor of where it began
RATE_CHANGE = 1.2  # and moves by at most this factor in one iteration: its gradient's size depends on the problem, and may be huge
LOOK_EVERY = 25  # iterations between two looks at the device: for the guards and the curve
MAX_SKIPPED = 0.05  # share of windows that may be skipped as not finite before the run is called diverged
ENOUGH, MOST_BEYOND = 100, 0.9  # after so many iterations, or all, this share of windows beyond the threshold means that nothing is learned
QUEUED = 2  # iterations that a CUDA device may have before it: a stop waits for these
FREE_SKIPS = 10  # as many are forgiven at any length, if they are less than half of all


@dataclass
class State:
    """All that changes from one iteration to the next."""

    images: torch.Tensor  # [m, c, h, w], normalised
    targets: torch.Tensor  # [m, d]
    rate: torch.Tensor  # [], or [num_layers], all alike at the start
    optimiser: torch.optim.Optimizer
    random: torch.Generator
    skipped: torch.Tensor  # [2] windows whose loss or gradient was not finite, and those that ended beyond the threshold
    iteration: int = 0
    history: dict[str, list[list[float]]] = field(default_factory=dict)  # curves: [iteration, value]
    recent: list[torch.Tensor] = field(default_factory=list)  # the loss and its terms since the last point of the curves
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None  # images, targets and rate that taught best, if looked for
    best_iteration: int = 0  # after which these were so
    least: float = math.inf  # error of what they taught
    looked: int = -1  # after which iteration they were last looked for

    @staticmethod
    def begin(spec: MatchingSpec, images: torch.Tensor, targets: torch.Tensor, rate: torch.Tensor, random: torch.Generator) -> "State":
        """Before the first iteration; the tensors are those that will be changed, in place."""
        groups = [
            {"params": [images], "lr": spec.lr_images},
            {"params": [targets], "lr": spec.lr_targets},
            {"params": [rate], "lr": spec.lr_rate},
        ]
        optimiser: torch.optim.Optimizer
        if spec.optimizer == "adam":
            optimiser = torch.optim.Adam(groups, betas=(spec.outer_momentum, 0.999))
        else:
            optimiser = torch.optim.SGD(groups, momentum=spec.outer_momentum)
        return State(images, targets, rate, optimiser, random, torch.zeros(2, device=images.device))


def match(
    loss: OuterLoss,
    windows: Windows,
    spec: MatchingSpec,
    state: State,
    work: Path,
    reporter: Reporter,
    looks: Looks | None = None,
    short_of_memory: bool = False,
) -> dict[str, list[list[float]]]:
    """Run `spec.iterations` outer steps on `state` in place; returns the curves `matching_loss`, `learned_lr` and, if any, the terms'.

    One iteration (MKDT, 2410.02116, algorithm 1): draw a window of an expert's path, train from its start for `inner_steps` on the
    synthetic set, compare the end with the window's goal, and step along the exact gradient.
    With `looks`, the state's `best` set is kept beside the last, from the first look on, before any step. short_of_memory: keep as
    little of an inner run as can be, which changes no bit of the result.
    Raises `DdcoreError` out_of_memory, before the first iteration where no plan fits, diverged, and `Stopped` after writing a checkpoint.
    """
    first_rate = float(state.rate.flatten()[0])  # before a checkpoint moves it: the bounds are those of the whole run
    _resume(work, state, loss.core.name, reporter)
    run = _Run(loss, windows, spec, Views(spec.augment, spec.inner_steps, state.images) if spec.augment else None, first_rate, reporter)
    memory, too_much = _plan(run, state, short_of_memory)
    reporter.note(f"matching with the {loss.core.name} core; {memory.words(spec.inner_steps)}")
    try:
        _match(run, _iteration(run, memory, state), state, work, looks)
    except Exception as error:
        if ran_out(error):
            raise too_much(error) from error
        raise
    return state.history


@dataclass(frozen=True)
class _Run:
    """What stays the same from one iteration to the next."""

    loss: OuterLoss
    windows: Windows
    spec: MatchingSpec
    views: Views | None
    first_rate: float
    reporter: Reporter


def _match(run: _Run, iteration: Replayed, state: State, work: Path, looks: Looks | None) -> None:
    """The iterations that are left."""
    spec, reporter = run.spec, run.reporter
    # A point of the curve waits for the device.
    stride = max(LOOK_EVERY if state.images.is_cuda else 1, spec.iterations // CURVE_POINTS)
    look_at = {0, *look_iterations(spec)} if looks is not None else set()
    ahead = Ahead(state.images.device, QUEUED)
    while True:
        random = state.random.get_state()
        try:
            ahead.mark(reporter.pulse)
            reporter.progress(state.iteration, spec.iterations, "iterations", "matching trajectories")
            if looks is not None and state.iteration in look_at and state.looked < state.iteration:
                _look(state, looks, reporter)
            if state.iteration == spec.iterations:
                return
            found = _iterate(run, iteration, state)
        except Stopped:
            state.random.set_state(random)  # what was drawn for this iteration is drawn again
            _save(work, state, run.loss.core.name)
            raise
        state.recent.append(found)
        state.iteration += 1
        if state.iteration % stride == 0 or state.iteration == spec.iterations:
            _record(state, run.loss.names, reporter)
        if state.iteration % LOOK_EVERY == 0 or state.iteration == spec.iterations:
            _check(run, state)
        if reporter.checkpoint_due():
            _save(work, state, run.loss.core.name)


def look_iterations(spec: MatchingSpec) -> set[int]:
    """After which iterations a set is looked at: evenly spaced, the last among them."""
    count = spec.looks if isinstance(spec, ImprovedSpec) else 0
    return {round(spec.iterations * look / count) for look in range(1, count + 1)}


def _look(state: State, looks: Looks, reporter: Reporter) -> None:
    error = looks.error(state.images, state.targets, state.rate, pulse=reporter.pulse)
    state.looked = state.iteration
    if math.isfinite(error):
        state.history.setdefault("real_error", []).append([state.iteration, error])
        reporter.metric("real_error", state.iteration, error)
    if error < state.least or state.best is None:
        state.least, state.best_iteration = error, state.iteration
        state.best = (state.images.clone(), state.targets.clone(), state.rate.clone())


def _plan(run: _Run, state: State, least: bool) -> tuple[Memory, Callable[[Exception], DdcoreError]]:
    """What an iteration keeps, from one step measured on parts of a batch and the memory that is free; and what to say if it was wrong."""
    device, spec = state.images.device, run.spec
    batches = [torch.arange(min(spec.batch_size, len(state.images)), device=device)] * spec.inner_steps
    inner = Inner(run.loss.core, state.images, state.targets, state.rate, batches, spec.inner_momentum, run.views)
    need, free = measure(inner, run.windows.experts.row(0, 0).to(device)), free_bytes(device)
    memory = plan_memory(need, inner, free, device, free_bytes(torch.device("cpu")), least)
    return memory, lambda error: exceeded(need, inner, free, memory, error)


def _iteration(run: _Run, memory: Memory, state: State) -> Replayed:
    """(start, goal, heading if its term is in use, rows of real images likewise, each step's indices) -> loss, terms, gradients."""
    loss, spec, device = run.loss, run.spec, state.images.device
    headed, functional = "gap" in loss.weights, "functional" in loss.weights
    decay = inner_decay(spec) if headed else None
    pulse = _unless_recording(run.reporter.pulse) if device.type == "cuda" else run.reporter.pulse

    def work(start: torch.Tensor, goal: torch.Tensor, *more: torch.Tensor) -> tuple[torch.Tensor, ...]:
        heading = more[0] if headed else None
        rows = more[headed] if functional else None
        batches = more[headed + functional :]
        inner = Inner(loss.core, state.images, state.targets, state.rate, batches, spec.inner_momentum, run.views, decay, pulse)
        way = run_inner(inner, start, memory)
        outer = loss(way, start, goal, heading, rows)
        found = pull_back(way, outer.end, outer.average)
        return outer.total, outer.terms, found.images, found.targets, found.rate

    return Replayed(work, device, run.reporter.note, _no_graph if memory.thetas == "host" else None)


def _unless_recording(pulse: Callable[[], None]) -> Callable[[], None]:
    """`pulse`, but nothing while a CUDA graph is recorded, which takes no time and must not be broken off."""

    def maybe() -> None:
        if not torch.cuda.is_current_stream_capturing():
            pulse()

    return maybe


def _no_graph(work: Callable[[], tuple[torch.Tensor, ...]]) -> NoReturn:
    raise RuntimeError("parameters are kept in host memory, which a graph cannot take")


def _iterate(run: _Run, iteration: Replayed, state: State) -> torch.Tensor:
    """One outer step; returns the outer loss and its terms [1 + k], still on the device. Nothing here waits for the device."""
    spec = run.spec
    window = run.windows.draw(state.iteration, state.random)
    batches = batches_of(len(state.images), spec.batch_size, spec.inner_steps, state.random)
    if run.views is not None:
        run.views.draw(state.random)
    if window.run_up:
        window = replace(window, start=_run_up(run, window, state))
    total, terms, *gradients = iteration(*_given(window, run.loss.real, spec, state), *batches)
    before = state.rate.clone()
    _step(state, spec, gradients, total, terms[0])
    lowest, highest = run.first_rate / RATE_BOUND, run.first_rate * RATE_BOUND
    state.rate.clamp_(before / RATE_CHANGE, before * RATE_CHANGE).clamp_(lowest, highest)
    return torch.cat([total.view(1), terms])


def _run_up(run: _Run, window: Window, state: State) -> torch.Tensor:
    """Where `window.run_up` inner steps on the set as it is lead from the window's start: [P], on the device, without a derivative."""
    core, spec, theta = run.loss.core, run.spec, window.start.to(state.images.device)
    rates = state.rate if state.rate.ndim == 0 else core.network.spread(state.rate)
    velocity = torch.zeros_like(theta)
    for rows in batches_of(len(state.images), spec.batch_size, window.run_up, state.random):
        run.reporter.pulse()
        rows = send(rows, theta.device)
        found = core.gradient(theta, state.images[rows], state.targets[rows])
        velocity = torch.add(found.gradient, velocity, alpha=spec.inner_momentum)
        theta = torch.addcmul(theta, velocity, rates, value=-1)
    return theta


def _given(window: Window, real: Regression | None, spec: MatchingSpec, state: State) -> list[torch.Tensor]:
    """What an iteration is given of its window, and the real images it looks at."""
    given = [window.start, window.goal]
    if window.heading is not None:
        given.append(window.heading)
    if isinstance(spec, ImprovedSpec) and spec.functional and real is not None:
        count = len(real.images)
        given.append(torch.randint(count, (min(spec.functional_images, count),), generator=state.random))
    return given


def _step(state: State, spec: MatchingSpec, found: Sequence[torch.Tensor], loss: torch.Tensor, distance: torch.Tensor) -> None:
    """Apply the gradients. A window that blew up (NaN or infinity anywhere), or ended beyond the threshold, counts as zero gradient."""
    used = torch.isfinite(loss)
    for gradient in found:
        used = used & torch.isfinite(gradient).all()
    state.skipped[0] += (~used).to(state.skipped.dtype)
    if isinstance(spec, ImprovedSpec) and spec.threshold is not None:
        beyond = used & (distance > spec.threshold)
        state.skipped[1] += beyond.to(state.skipped.dtype)
        used = used & ~beyond
    for tensor, gradient in zip((state.images, state.targets, state.rate), found, strict=True):
        tensor.grad = torch.where(used, gradient, torch.zeros_like(gradient))
    if isinstance(spec, ImprovedSpec) and spec.schedule == "cosine":
        part = (1 + math.cos(math.pi * state.iteration / spec.iterations)) / 2
        for group, size in zip(state.optimiser.param_groups, (spec.lr_images, spec.lr_targets, spec.lr_rate), strict=True):
            group["lr"] = size * part
    state.optimiser.step()


def _record(state: State, terms: Sequence[str], reporter: Reporter) -> None:
    """One point of each curve; a loss of one term is that term."""
    losses = torch.stack(state.recent)
    state.recent.clear()
    finite = losses[torch.isfinite(losses).all(1)]
    means = finite.mean(0).tolist() if len(finite) else [math.inf] * losses.shape[1]
    values = {"matching_loss": means[0], "learned_lr": mean_rate(state.rate)}
    if len(terms) > 1:
        values |= dict(zip(terms, means[1:], strict=True))
    for name, value in values.items():
        if math.isfinite(value):
            state.history.setdefault(name, []).append([state.iteration, value])
            reporter.metric(name, state.iteration, value)


def _check(run: _Run, state: State) -> None:
    """The guards. Raises `DdcoreError` diverged with the numbers and what to change."""
    spec, network, first_rate = run.spec, run.loss.core.network, run.first_rate
    (skipped, beyond), rates = state.skipped.tolist(), state.rate.flatten().tolist()
    for name, tensor in (("images", state.images), ("targets", state.targets)):
        if not torch.isfinite(tensor).all():
            raise DdcoreError("diverged", f"the synthetic {name} became infinite by iteration {state.iteration}", _advice(spec))
    if skipped > min(max(FREE_SKIPS, MAX_SKIPPED * state.iteration), state.iteration / 2):
        raise DdcoreError(
            "diverged", f"{skipped:.0f} of {state.iteration} windows gave a loss or gradient that is not finite", _advice(spec)
        )
    if state.iteration >= min(ENOUGH, spec.iterations) and beyond > MOST_BEYOND * state.iteration:
        detail = f"{beyond:.0f} of {state.iteration} windows ended beyond the threshold, so hardly anything was learned"
        raise DdcoreError("diverged", detail, "lower method.initial_rate, shorten the windows, or leave out method.threshold")
    for layer, rate in enumerate(rates):
        if first_rate / RATE_BOUND * 1.001 < rate < first_rate * RATE_BOUND * 0.999:
            continue
        whose = f" of layer {network.layer_names[layer]}" if state.rate.ndim else ""
        raise DdcoreError(
            "diverged",
            f"the learned rate{whose} ran from {first_rate:g} to its bound {rate:g} by iteration {state.iteration}",
            f"lower method.lr_rate (it was {spec.lr_rate:g}) or set method.initial_rate nearer to where it belongs",
        )


def _advice(spec: MatchingSpec) -> str:
    sizes = f"method.lr_images (it was {spec.lr_images:g}), method.lr_targets (it was {spec.lr_targets:g})"
    return f"lower {sizes} or method.initial_rate; shorten method.inner_steps ({spec.inner_steps})"


def _save(work: Path, state: State, core: str) -> None:
    tensors = {"images": state.images, "targets": state.targets, "rate": state.rate, "skipped": state.skipped}
    tensors["random"] = state.random.get_state()
    tensors["recent"] = torch.stack(state.recent) if state.recent else torch.zeros(0)
    for index, slots in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in slots.items() if value is not None}
    if state.best is not None:
        tensors |= dict(zip(("best.images", "best.targets", "best.rate"), state.best, strict=True))
    facts = {"iteration": state.iteration, "history": state.history, "core": core, "best_iteration": state.best_iteration}
    facts["looked"] = state.looked
    write_checkpoint(work, LAYOUT, tensors, facts | ({"least": state.least} if math.isfinite(state.least) else {}))


def _resume(work: Path, state: State, core: str, reporter: Reporter) -> None:
    found = read_checkpoint(work, LAYOUT, reporter.note)
    if found is None:
        return
    tensors, facts = found
    if (before := facts.get("core", core)) != core:  # a compiler that failed once may work the next time
        reporter.note(f"goes on with the {core} core from a checkpoint of the {before} core: the same result up to rounding")
    for name in ("images", "targets", "rate", "skipped"):
        getattr(state, name).copy_(tensors.pop(name))
    state.random.set_state(tensors.pop("random"))
    if "best.images" in tensors:
        images, targets, rate = (tensors.pop(f"best.{name}").to(state.images.device) for name in ("images", "targets", "rate"))
        state.best, state.best_iteration, state.least = (images, targets, rate), facts["best_iteration"], facts.get("least", math.inf)
    state.recent = list(tensors.pop("recent").to(state.images.device))
    slots: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        _, index, name = key.split(".")
        slots.setdefault(int(index), {})[name] = value
    state.optimiser.load_state_dict(state.optimiser.state_dict() | {"state": slots})
    state.iteration, state.history, state.looked = facts["iteration"], facts["history"], facts["looked"]
    reporter.again(state.history)
