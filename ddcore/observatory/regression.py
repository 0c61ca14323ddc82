"""What experts that regress targets minimise, looked at again: their squared error, and how far its gradients scatter."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ddcore.data.images import Normaliser, load_dataset, mean_std
from ddcore.events import Reporter
from ddcore.experts.sgd import Regression
from ddcore.experts.store import Trajectories
from ddcore.ledger import Once, at_once
from ddcore.matching.cores import Core
from ddcore.matching.explicit import core_of
from ddcore.networks.flat import FlatNetwork
from ddcore.observatory.noise import Scatter
from ddcore.observatory.recordings import read_params
from ddcore.specs import ExpertsSpec
from ddcore.task import Task, generator

BATCHES = 16  # gradients that are compared at a snapshot
MOST_SNAPSHOTS = 9  # of an expert, evenly spaced: each costs BATCHES training steps


@dataclass(frozen=True)
class Regressed:
    """The task that experts learnt. batch_size: theirs, or all images where there are fewer."""

    core: Core
    data: Regression
    batch_size: int


def regressed(task: Task, shards: Sequence[Path], network: FlatNetwork) -> Regressed:
    """Images, targets and settings of the experts in `shards`: as their step says that it had them, or as by default."""
    spec = ExpertsSpec(**read_params(shards[0]).get("experts", {}))
    data = load_dataset(task.input("dataset"))
    targets = load_file(task.input("targets") / "targets.safetensors")["targets"]
    core = core_of(network.to(task.device), task.device)
    normaliser = Normaliser.of(*mean_std(data.images, task.reporter.pulse), task.device)
    return Regressed(core, Regression.of(data, targets, normaliser, core, spec.augment), min(spec.batch_size, len(data)))


def gradient_scatter(
    learnt: Regressed, store: Trajectories, expert: int, seed: int, reporter: Reporter, once: Once = at_once
) -> dict[str, Any]:
    """How far gradients of `BATCHES` batches scatter, as a multiple of their mean's length (see `Scatter`), along one expert's path.

    Batches are of the expert's own size, drawn anew at each of at most `MOST_SNAPSHOTS` snapshots. Returns {"epoch": [s], "all": [s],
    "encoder": [s]}: of all parameters' gradient, and of those before the last layer; None where the batches share no direction.
    once: see `ddcore.ledger`.
    """
    network, images = learnt.core.network, len(learnt.data.images)
    encoder = network.num_parameters - network.layer_sizes[-1]
    found: dict[str, Any] = {"epoch": evenly(store.num_snapshots, MOST_SNAPSHOTS), "all": [], "encoder": []}

    def ratios(place: int, snapshot: int) -> list[float | None]:
        random, theta = generator(seed, "observe", "gradient noise", snapshot), _on_device(store.row(expert, snapshot), learnt)
        whole, part = Scatter(), Scatter()
        for number in range(BATCHES):
            reporter.progress(place * BATCHES + number, len(found["epoch"]) * BATCHES, "gradients", "scatter of the experts' gradients")
            rows = torch.randperm(images, generator=random)[: learnt.batch_size].to(theta.device)
            gradient = learnt.core.gradient(theta, *learnt.data.batch(rows, random)).gradient
            whole.add(gradient)
            part.add(gradient[:encoder])
        return [whole.ratio(), part.ratio()]

    for place, snapshot in enumerate(found["epoch"]):
        own = once(functools.partial(ratios, place, snapshot))
        found["all"].append(own[0])
        found["encoder"].append(own[1])
    return found


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spaced, the first and the last among them."""
    return torch.linspace(0, count - 1, min(count, most)).round().long().tolist()


def _on_device(theta: Tensor, learnt: Regressed) -> Tensor:
    return theta.to(learnt.data.targets.device)
