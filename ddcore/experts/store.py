"""Recorded trajectories: how a shard's file holds them, and how one of their snapshots is read back.

Two forms of the same array [count, snapshots, P]. Whole: `trajectories`, float32. Differences: `start`, float32 [count, P], and
`deltas`, bfloat16 [count, snapshots - 1, P], each taken from where the differences before it lead, not from the true snapshot before:
so every snapshot is off by the rounding of one difference only, and nothing adds up along the way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddcore.errors import DdcoreError
from ddcore.transfer import send

NAME = "experts.safetensors"
Storage = Literal["float32", "bf16_deltas"]


@dataclass(frozen=True)
class Whole:
    """A shard's snapshots as they were: float32 [count, snapshots, P]."""

    trajectories: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        count, snapshots, parameters = self.trajectories.shape
        return count, snapshots, parameters

    @property
    def nbytes(self) -> int:
        return self.trajectories.nbytes

    @property
    def written(self) -> bool:
        return self.trajectories._version > 0

    def to(self, device: torch.device) -> "Whole":
        return Whole(self.trajectories.to(device))

    def tensors(self) -> dict[str, Tensor]:
        return {"trajectories": self.trajectories}

    def columns(self, expert: int, first: int, last: int) -> Tensor:
        return self.trajectories[expert, :, first:last]

    def row(self, expert: int, snapshot: int) -> Tensor:
        return self.trajectories[expert, snapshot]


@dataclass(frozen=True)
class Deltas:
    """A shard's first snapshots, float32 [count, P], and the differences from each to the next, bfloat16 [count, snapshots - 1, P]."""

    start: Tensor
    deltas: Tensor

    @classmethod
    def of(cls, trajectories: Tensor, pulse: Callable[[], None] = lambda: None) -> Self:
        """From snapshots float32 [count, snapshots, P]. pulse: called before each; it may raise."""
        start, deltas = trajectories[:, 0].clone(), torch.empty_like(trajectories[:, 1:], dtype=torch.bfloat16)
        for reached, path, own in zip(start.clone(), trajectories, deltas, strict=True):
            for snapshot, delta in zip(path[1:], own, strict=True):
                pulse()
                delta.copy_(snapshot - reached)
                reached.add_(delta)
        return cls(start, deltas)

    @property
    def shape(self) -> tuple[int, int, int]:
        count, moves, parameters = self.deltas.shape
        return count, moves + 1, parameters

    @property
    def nbytes(self) -> int:
        return self.start.nbytes + self.deltas.nbytes

    @property
    def written(self) -> bool:
        return self.start._version > 0

    def to(self, device: torch.device) -> "Deltas":
        return Deltas(self.start.to(device), self.deltas.to(device))

    def tensors(self) -> dict[str, Tensor]:
        return {"start": self.start, "deltas": self.deltas}

    def columns(self, expert: int, first: int, last: int) -> Tensor:
        rows = [self.start[expert, first:last]]
        for delta in self.deltas[expert, :, first:last]:
            rows.append(rows[-1] + delta)
        return torch.stack(rows)

    def row(self, expert: int, snapshot: int) -> Tensor:
        """One snapshot, float32 [P], put together from the start and all differences before it."""
        if snapshot == 0:
            return self.start[expert]
        reached = self.start[expert] + self.deltas[expert, 0]
        for delta in self.deltas[expert, 1:snapshot]:
            reached += delta
        return reached


def write_trajectories(
    folder: Path, trajectories: Tensor, storage: Storage, facts: str, pulse: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Write a shard's file; `facts` (JSON) goes into its metadata. trajectories: float32 [count, snapshots, P].

    pulse: called now and then; it may raise.

    Returns what is wrong with the stored snapshots, relative to each one's distance from its start: the largest and the mean, or
    nothing where they are stored whole.
    """
    shard = Whole(trajectories) if storage == "float32" else Deltas.of(trajectories, pulse)
    # One entry of metadata: the library writes several in an order that changes from run to run.
    save_file(shard.tensors(), folder / NAME, metadata={"potstill": facts})
    if isinstance(shard, Whole):
        return {}
    errors = torch.cat([_relative_errors(path, shard, expert, pulse) for expert, path in enumerate(trajectories)])
    return {"max": float(errors.max()), "mean": float(errors.mean())}


def _relative_errors(path: Tensor, shard: Deltas, expert: int, pulse: Callable[[], None]) -> Tensor:
    """|stored - true| / |true - start| of every snapshot but the first: [snapshots - 1]."""
    errors, reached = [], shard.start[expert].clone()
    for delta, snapshot in zip(shard.deltas[expert], path[1:], strict=True):
        pulse()
        errors.append((reached.add_(delta) - snapshot).norm())
    moved = (path[1:] - path[0]).norm(dim=1)
    return torch.div(torch.stack(errors), moved.clamp_min(torch.finfo(path.dtype).tiny))


class Trajectories:
    """The experts of all shards as one array [num_experts, num_snapshots, P] that is never read whole, unless put on a device.

    device: where rows are given out (None: the CPU). budget: bytes of that device that all shards together may take up to stay
    there; beyond it, each row is sent when it is asked for. On the CPU the files stay mapped, and what was read of them is the
    system's to cache.
    """

    def __init__(self, folders: Sequence[Path], device: torch.device | None = None, budget: int = 0) -> None:
        shards = [_mapped(folder / NAME) for folder in folders]
        shapes = {shard.shape[1:] for shard in shards}
        if len(shapes) != 1:
            raise DdcoreError("missing_input", f"shards of different shapes cannot be matched together: {sorted(shapes)}")
        self.device, self.nbytes = device or torch.device("cpu"), sum(shard.nbytes for shard in shards)
        self.resident = self.device.type != "cpu" and self.nbytes <= budget
        if self.resident:
            shards = [shard.to(self.device) for shard in shards]
        self._places = [(shard, i) for shard in shards for i in range(shard.shape[0])]
        self.num_experts = len(self._places)
        self.num_snapshots, self.num_parameters = shapes.pop()

    def row(self, expert: int, snapshot: int) -> Tensor:
        """The flat parameters float32 [P] of one expert at one snapshot, for reading only: they may be the store's own memory.

        Raises RuntimeError if an earlier row of the same shard was written to, for then later ones are wrong.
        """
        shard, i = self._places[expert]
        if shard.written:
            raise RuntimeError("a row of the trajectories was changed in place by its reader; clone it first")
        row = shard.row(i, snapshot)
        return row if self.resident else send(row, self.device)

    def columns(self, expert: int, first: int, last: int) -> Tensor:
        """Parameters `first` to `last` (exclusive) of all snapshots of one expert: float32 [num_snapshots, last - first], likewise."""
        shard, i = self._places[expert]
        return shard.columns(i, first, last)


def _mapped(path: Path) -> Whole | Deltas:
    """The shard in a file, its tensors views of the mapped file: writing to them would not change the file, but later reads."""
    try:
        file = safe_open(path, framework="pt")
        if "start" in file.keys():  # noqa: SIM118 - not a dict
            return Deltas(file.get_tensor("start"), file.get_tensor("deltas"))
        return Whole(file.get_tensor("trajectories"))
    except (SafetensorError, OSError) as error:
        detail = f"the trajectories in {path.name} cannot be read: {error}"
        raise DdcoreError("missing_input", detail, "run the experts again") from error
