"""What a distillation recorded of its moving parts, read from the folders of its steps without loading trajectories whole."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddcore.events import Reporter
from ddcore.experts.store import Trajectories
from ddcore.ledger import Ledger
from ddcore.observatory.pca import Read, centred_gram
from ddcore.ssl.trajectory import NAME, read_trajectory

MOST_EXPERTS = 50  # drawn; more would hide one another, and the Gram matrix grows with their square


@dataclass(frozen=True)
class ExpertPaths:
    """gram: centred inner products, float64 [experts * snapshots, the same], experts in order and each in order of time."""

    gram: Tensor
    experts: int
    snapshots: int
    recorded: int  # experts there are; `experts` of them, evenly spaced, are here

    @property
    def starts(self) -> Tensor:
        """The row of each expert's start, int64 [experts]."""
        return torch.arange(self.experts) * self.snapshots

    @property
    def origins(self) -> Tensor:
        """The row of the start of each row's expert, int64 [experts * snapshots]."""
        return self.starts.repeat_interleave(self.snapshots)


@dataclass(frozen=True)
class TeacherPaths:
    """names: `student`, and for DINO `teacher`; step int64 [s]; gram float64 [names * s, the same], name by name."""

    gram: Tensor
    names: tuple[str, ...]
    step: Tensor

    def rows(self, name: str) -> Tensor:
        first = self.names.index(name) * len(self.step)
        return torch.arange(first, first + len(self.step))


def read_experts(shards: Sequence[Path], ledger: Ledger, reporter: Reporter) -> ExpertPaths | None:
    """The experts of all shards, a part of `ledger`; None if there are none."""
    if not shards:
        return None
    paths = Trajectories(shards)
    chosen = drawn_experts(paths)

    def read(first: int, last: int) -> Tensor:
        return torch.cat([paths.columns(expert, first, last) for expert in chosen])

    reading, rows, columns = told(reporter, read, paths.num_parameters, "experts"), len(chosen) * paths.num_snapshots, paths.num_parameters
    gram = ledger.once(lambda: centred_gram(reading, rows, columns, ledger))
    return ExpertPaths(gram, len(chosen), paths.num_snapshots, paths.num_experts)


def drawn_experts(paths: Trajectories) -> list[int]:
    """Those that are looked at: all, or `MOST_EXPERTS` of them, evenly spaced."""
    return torch.linspace(0, paths.num_experts - 1, min(MOST_EXPERTS, paths.num_experts)).round().long().tolist()


def read_teacher(folder: Path, ledger: Ledger, reporter: Reporter) -> TeacherPaths | None:
    """The teacher's run, a part of `ledger`; None for a teacher that was given and not trained."""
    if not (folder / NAME).exists():
        return None
    arrays, step = read_trajectory(folder)

    def read(first: int, last: int) -> Tensor:
        return torch.cat([array[:, first:last] for array in arrays.values()])

    columns = next(iter(arrays.values())).get_shape()[1]
    reading = told(reporter, read, columns, "teacher")
    gram = ledger.once(lambda: centred_gram(reading, len(arrays) * len(step), columns, ledger))
    return TeacherPaths(gram, tuple(arrays), step)


def told(reporter: Reporter, read: Read, columns: int, what: str) -> Read:
    """The same reader of `columns` parameters, which says how far it is and can be stopped."""

    def reading(first: int, last: int) -> Tensor:
        reporter.progress(first, columns, "parameters", what)
        return read(first, last)

    return reading


def read_history(folder: Path) -> dict[str, Any]:
    """The curves a step kept; empty if it kept none."""
    path = folder / "history.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def read_params(folder: Path) -> dict[str, Any]:
    """The parameters of the step that left `folder`; empty if it does not say."""
    path = folder / "step.json"
    found: dict[str, Any] = json.loads(path.read_text())["params"] if path.exists() else {}
    return found
