"""Where pre-training on a synthetic set leads from an expert's start, beside the expert's own way."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ddcore.data.images import load_dataset
from ddcore.errors import DdcoreError
from ddcore.events import Reporter
from ddcore.experts.store import Trajectories
from ddcore.ledger import Ledger, State
from ddcore.matching.adjoint import Inner, batches_of
from ddcore.matching.explicit import core_of
from ddcore.matching.windows import Pace, expert_at
from ddcore.networks.flat import build_student
from ddcore.observatory.pca import Plane, centred_gram, displacement_gram, projected_plane
from ddcore.observatory.recordings import told
from ddcore.observatory.regression import evenly
from ddcore.specs import StudentSpec
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task, generator
from ddcore.threads import threads_for

POINTS = 40  # kept of a run, about; fewer of large networks,
NUMBERS = 1 << 26  # so that a run keeps no more than this: 256 MiB
MOST_EXPERTS = 8  # in the plane


@dataclass(frozen=True)
class Clock:
    """How steps on a set and epochs of an expert go together, as the set was matched: `steps` in all, `epochs_a_step` each."""

    steps: int
    epochs_a_step: float

    @staticmethod
    def of(method: dict[str, Any]) -> "Clock | None":
        """From the settings of the method that made the set; None if it matched no windows."""
        if "inner_steps" not in method:
            return None
        last = method["max_start_epoch"] + method["expert_epochs"]
        return Clock(math.ceil(method["inner_steps"] * last / method["expert_epochs"]), method["expert_epochs"] / method["inner_steps"])


@dataclass(frozen=True)
class InnerPaths:
    """Runs from one expert's start. epochs [k]: the expert's time at each kept step.

    plane: of the experts' moves from their own starts, `experts` first, `snapshots` rows each, then each of `runs` with k rows.
    distances: by run, to the expert at the same time, [k]; `standing`: of the start itself from there. All L2.
    """

    epochs: list[float]
    plane: Plane
    experts: int
    snapshots: int
    runs: list[str]
    distances: dict[str, list[float]]
    standing: list[float]


def inner_paths(task: Task, data: SyntheticSet, shards: Sequence[Path], clock: Clock, ledger: Ledger) -> InnerPaths:
    """Pre-train from the first expert's start as evaluation does, on the synthetic set and on the real images that it began from.

    Both with the set's own rate or rates, the method's batch size and momentum, without augmentation, for all epochs that were
    matched. The expert is read as it was matched: between two snapshots on the straight line, and an averaged path later by its lag
    where matching did so. A run that diverges is left out, with a note. ledger: of the whole step.
    params: {"student"}; inputs: dataset, targets. Raises `DdcoreError` missing_input if the experts are of another network.
    """
    store = Trajectories(shards)
    network = build_student(StudentSpec(**task.params["student"]), tuple(data.images.shape[1:]), data.targets.shape[1]).to(task.device)
    if network.num_parameters != store.num_parameters:
        detail = f"the experts have {store.num_parameters:,} parameters, but the student of the set has {network.num_parameters:,}"
        raise DdcoreError("missing_input", detail, "give experts of the student that the set was made with")
    targets = load_file(task.input("targets") / "targets.safetensors")["targets"][data.indices]
    real = SyntheticSet(
        load_dataset(task.input("dataset")).images[data.indices].float() / 255, targets, data.learned_lr, data.indices, data.info
    )
    core, start, method = core_of(network, task.device), store.row(0, 0).to(task.device), data.info["method"]
    size, runs = min(method["batch_size"], len(data.images)), {}
    with threads_for(network, size):
        for name, one in (("synthetic", data), ("real", real)):
            batches = batches_of(len(one.images), size, clock.steps, generator(0, "inner path"))
            images, rate = one.normalised().to(task.device), one.learned_lr.to(task.device)
            inner = Inner(core, images, one.targets.to(task.device), rate, batches, method.get("inner_momentum", 0.0))
            run = ledger.once(functools.partial(_run, inner, start, task.reporter, name, ledger))
            if torch.isfinite(run).all():
                runs[name] = run
            else:
                task.reporter.note(f"pre-training on the {name} images at the learned rate diverged: it is left out of inner_path")
    kept = _kept(clock.steps, network.num_parameters)
    lag = data.info.get("pace")
    times = [step * clock.epochs_a_step for step in kept]
    return _placed(store, runs, None if lag is None else Pace(**lag), times, ledger, task.reporter)


def _kept(steps: int, parameters: int) -> list[int]:
    """At which times a run's parameters are kept: before every few steps, and after the last."""
    return [*range(0, steps, math.ceil(steps / min(POINTS, max(4, NUMBERS // parameters)))), steps]


def _run(inner: Inner, start: Tensor, reporter: Reporter, name: str, ledger: Ledger) -> Tensor:
    """The kept parameters [k, P] of one run, on the CPU; the part in hand of `ledger`."""
    theta, velocity, steps, found, first = start, None, len(inner.batches), list[Tensor](), 0
    if before := ledger.resume():
        tensors, first = {name: tensor.to(start.device) for name, tensor in before[0].items()}, before[1]["steps"]
        theta, velocity, found = tensors["theta"], tensors.get("velocity"), list(before[0]["found"])
    done, kept = first, set(_kept(steps, len(start)))

    def state() -> State:
        tensors = {"theta": theta, "found": torch.stack(found) if found else torch.zeros(0, len(start))}
        return tensors if velocity is None else tensors | {"velocity": velocity}, {"steps": done}

    ledger.hold(state)
    for t in range(first, steps):
        ledger.offer()
        reporter.progress(t, steps, "steps", f"pre-training on the {name} images")
        if t in kept:
            found.append(theta.cpu())
        _, theta, moved = inner.step(t, theta, velocity)
        velocity, done = moved if inner.momentum else None, t + 1
    return torch.stack([*found, theta.cpu()])


def _placed(
    store: Trajectories, runs: dict[str, Tensor], pace: Pace | None, epochs: list[float], ledger: Ledger, reporter: Reporter
) -> InnerPaths:
    chosen, count = evenly(store.num_experts, MOST_EXPERTS), store.num_snapshots

    def read(first: int, last: int) -> Tensor:
        return torch.cat([*(store.columns(e, first, last).cpu() for e in chosen), *(run[:, first:last] for run in runs.values())])

    fitted = torch.arange(len(chosen) * count)
    rows = len(fitted) + len(runs) * len(epochs)
    starts = torch.arange(0, len(fitted), count)
    origins = torch.cat([starts.repeat_interleave(count), torch.zeros(rows - len(fitted), dtype=torch.long)])
    reading = told(reporter, read, store.num_parameters, "inner path")
    gram: Tensor = ledger.once(lambda: centred_gram(reading, rows, store.num_parameters, ledger))
    moves = displacement_gram(gram, origins)
    plane = projected_plane(moves, fitted, starts, starts + count - 1)
    goals = [expert_at(store, 0, epoch, pace).cpu() for epoch in epochs]
    return InnerPaths(
        epochs,
        Plane(plane.coordinates - plane.coordinates[:1], plane.explained),  # every start is the origin
        len(chosen),
        count,
        list(runs),
        {name: [float((theta - goal).norm()) for theta, goal in zip(run, goals, strict=True)] for name, run in runs.items()},
        [float((store.row(0, 0).cpu() - goal).norm()) for goal in goals],
    )
