"""Experts that teach themselves: the student network trained without labels by the teacher's own recipe, and the path that it leaves.

The literal form of matching a DINO run: not students that regress a teacher, but the parameters of a DINO teacher (the moving average)
or student themselves, of the very network that a synthetic set pre-trains, its last linear layer included. As many snapshots as other
experts have epochs, evenly spaced over the whole run: an "epoch" of such a path is that part of the run.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from ddcore.data.images import Images
from ddcore.networks.flat import FlatNetwork
from ddcore.ssl.collapse import ADVICE, WORDS
from ddcore.ssl.objective import Objective
from ddcore.ssl.train import Run, Trained, objective_around
from ddcore.ssl.trajectory import read_kept
from ddcore.task import Task, generator


class StudentRun(Run):
    """A teacher's run with the student network in the backbone's place, from an expert's initialisation.

    The heads on it are each expert's own too, or one for all where experts begin alike ("same_start" of the task).
    """

    def __init__(self, spec: Trained, data: Images, task: Task, network: FlatNetwork, start: Tensor, out_dim: int) -> None:
        self.network, self.start, self.out_dim = network, start, out_dim
        super().__init__(spec, data, task)

    def build(self) -> Objective:
        """Heads and loss of the recipe on the student, which is set to its start."""
        stream = () if self.task.params["same_start"] else self.stream
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator(self.seed, "heads", *stream).initial_seed())
            vector_to_parameters(self.start, self.network.module.parameters())
            return objective_around(self.spec, self.network.module, self.out_dim, self.seed, self.task.device)


def own_path(task: Task, index: int, network: FlatNetwork, start: Tensor, data: Images, out_dim: int) -> tuple[Tensor, list[float]]:
    """Expert `index`'s snapshots [epochs + 1, P] from `start` [P] (CPU), and the mean loss between each two.

    params: "teacher", "epochs", "path" ("teacher": the moving average; "student": what the optimiser moves), "same_start" and "seed".
    Resumes from, and leaves its checkpoint in, a folder of its own in `task.work`. network: its module is trained; start: written to.
    """
    spec = TypeAdapter[Trained](Trained).validate_python(task.params["teacher"])
    recorded = {"snapshots": task.params["epochs"] + 1, "snapshot_every": None, "storage": "float32"}
    spec = spec.model_copy(update=recorded | {"gradient_batches": 0})  # a curve of the teacher's run, and of no expert's
    work = task.work / f"expert-{index}"
    work.mkdir(exist_ok=True)
    params = {"seed": task.params["seed"], "run": index + 1, "same_start": task.params.get("same_start", False)}
    own = replace(task, params=params, work=work)  # run 0 is the teacher's own stream
    run = StudentRun(spec, data, own, network, start, out_dim)
    run.train()
    if kind := run.collapsed():
        task.reporter.note(f"expert {index}: {WORDS[kind]}; {ADVICE[kind]}")
    name: Literal["teacher", "student"] = task.params["path"]
    snapshots = torch.stack([read_kept(work, step)[name] for step in run.snapshots])
    return snapshots, [_mean_loss(run.history["loss"], first, last) for first, last in pairwise(run.snapshots)]


def _mean_loss(points: list[list[float]], first: int, last: int) -> float:
    """The mean of the points [step, loss] at steps `first` to `last` (exclusive); the curve is thinned, so it may have but one before."""
    between = [value for step, value in points if first <= step < last]
    return sum(between) / len(between) if between else [value for step, value in points if step < first][-1]
