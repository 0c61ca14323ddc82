"""Snapshots of a teacher's run: which steps, how they wait until the run is over, and how they are read back.

Two forms of the same numbers. Whole: `student`, for DINO also `teacher`, float32 [s, P]. Differences: of the network that is kept (the
DINO teacher; else the student) `start`, float32 [1, P], and `deltas`, bfloat16 [s - 1, P], each taken from where the differences before
it lead, not from the true snapshot before; and, for DINO, `gap`, bfloat16 [s, P], the student less that teacher. So every snapshot is
off by the rounding of one difference only, and nothing adds up along the run. Both hold `step`, int64 [s].
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddcore.errors import DdcoreError

NAME = "trajectory.safetensors"
Storage = Literal["float32", "gap"]
_CODES = {torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16"}


def snapshot_steps(total: int, count: int) -> list[int]:
    """At most `count` distinct steps, evenly spaced, the first 0 and the last `total`."""
    return sorted({round(i * total / (count - 1)) for i in range(count)})


def steps_apart(total: int, apart: float) -> list[int]:
    """Distinct steps from 0, `apart` (which need not be whole) from one to the next, and the last, `total`."""
    return sorted({min(total, round(i * apart)) for i in range(math.ceil(total / apart) + 1)})


def flat(module: nn.Module) -> Tensor:
    """A copy of the parameters, in their order, as one float32 vector [P] on the CPU; running statistics are left out."""
    return torch.cat([p.detach().float().cpu().flatten() for p in module.parameters()])


class Recorder:
    """Puts snapshots aside in `work`, one file each, in the form they are to be stored in; a resumed run writes the same files again."""

    def __init__(self, work: Path, steps: list[int], storage: Storage) -> None:
        self._work, self._steps, self._storage = work, steps, storage
        self._reached: tuple[int, Tensor] | None = None  # place of the last snapshot, and where its differences lead

    def keep(self, step: int, student: Tensor, teacher: Tensor | None = None) -> None:
        """One step's vectors [P]; steps come in their order, but for those that a resumed run repeats."""
        if self._storage == "float32":
            save_file({"student": student} if teacher is None else {"student": student, "teacher": teacher}, _path(self._work, step))
            return
        kept, place, tensors = student if teacher is None else teacher, self._steps.index(step), dict[str, Tensor]()
        if place == 0:
            start = reached = tensors["start"] = kept
        else:
            before, start = self._before(place), read_kept(self._work, self._steps[0])["start"]
            tensors["delta"] = (kept - before).bfloat16()
            reached = before + tensors["delta"]
        errors = [_relative(reached, kept, start)]
        if teacher is not None:
            tensors["gap"] = (student - reached).bfloat16()
            errors.append(_relative(reached + tensors["gap"], student, start))
        save_file({**tensors, "errors": torch.cat(errors)}, _path(self._work, step))
        self._reached = place, reached

    def holds(self, step: int) -> bool:
        """Whether every snapshot up to `step` is there: after a crash of the machine some may not have reached the disk."""
        try:
            for one in self._steps:
                if one <= step:
                    with safe_open(_path(self._work, one), framework="pt"):
                        pass
        except (OSError, SafetensorError):
            return False
        return True

    def _before(self, place: int) -> Tensor:
        if self._reached is None or self._reached[0] != place - 1:
            reached = read_kept(self._work, self._steps[0])["start"]
            for step in self._steps[1:place]:
                reached = reached + read_kept(self._work, step)["delta"]
            self._reached = place - 1, reached
        return self._reached[1]

    def gather(self, out: Path, pulse: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Write trajectory.safetensors, a snapshot at a time. pulse: called before each; it may raise.

        Returns what is wrong with the stored snapshots, relative to each one's distance from its start: the largest and the mean, or
        nothing where they are stored whole.
        """
        steps, first = self._steps, read_kept(self._work, self._steps[0])
        if self._storage == "float32":
            parts = {name: _Part(name, steps, torch.float32) for name in first}
        else:
            parts = {"start": _Part("start", steps[:1], torch.float32), "deltas": _Part("delta", steps[1:], torch.bfloat16)}
            if "gap" in first:
                parts["gap"] = _Part("gap", steps, torch.bfloat16)
        _write(out / NAME, self._work, steps, parts, pulse)
        if self._storage == "float32":
            return {}
        errors = torch.cat([read_kept(self._work, step)["errors"] for step in steps[1:]])
        return {"max": float(errors.max()), "mean": float(errors.mean())}


@dataclass(frozen=True)
class _Part:
    """An array of the finished file: what its rows are called in the files put aside, of which steps, and of which type."""

    kept: str
    steps: list[int]
    dtype: torch.dtype


def _write(path: Path, work: Path, steps: list[int], parts: dict[str, _Part], pulse: Callable[[], None]) -> None:
    """The file that safetensors would write of these arrays and `step`, row after row: a long run is larger than memory."""
    sizes = {name: part.dtype.itemsize for name, part in parts.items()}
    one = next(iter(parts.values()))
    columns = read_kept(work, one.steps[0])[one.kept].numel()
    table, end = {"step": {"dtype": "I64", "shape": [len(steps)], "data_offsets": [0, 8 * len(steps)]}}, 8 * len(steps)
    order = sorted(parts, key=lambda name: (-sizes[name], name))  # as there: wide types first, so that all lie aligned
    for name in order:
        begin, end = end, end + len(parts[name].steps) * columns * sizes[name]
        shape, dtype = [len(parts[name].steps), columns], _CODES[parts[name].dtype]
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(torch.tensor(steps).numpy().tobytes())
        for name in order:
            for step in parts[name].steps:
                pulse()
                with safe_open(_path(work, step), framework="pt") as kept:
                    file.write(kept.get_tensor(parts[name].kept).view(torch.uint8).numpy().tobytes())


class Track:
    """The snapshots of one network as an array [s, P] of float32 that stays on disk, whatever form it is stored in."""

    def __init__(self, file: Any, name: str) -> None:
        names = set(file.keys())

        def part(of: str) -> Any:
            return file.get_slice(of) if of in names else None

        self._whole, self._start, self._deltas = part(name), part("start"), part("deltas")
        self._gap = part("gap") if name == "student" else None
        self._reached: tuple[int, Tensor] | None = None  # the last row put together, and its number

    def get_shape(self) -> list[int]:
        if self._whole is not None:
            shape: list[int] = self._whole.get_shape()
            return shape
        moves, parameters = self._deltas.get_shape()
        return [moves + 1, parameters]

    def __getitem__(self, key: tuple[slice, slice]) -> Tensor:
        """Some columns, or all, of some snapshots: `track[:, first:last]`."""
        rows, columns = key
        if self._whole is not None:
            found: Tensor = self._whole[rows, columns]
            return found
        reached = [self._start[0, columns]]
        for delta in self._deltas[:, columns]:
            reached.append(reached[-1] + delta)
        kept = torch.stack(reached)
        return (kept if self._gap is None else kept + self._gap[:, columns])[rows]

    def row(self, number: int) -> Tensor:
        """One snapshot, [P], not to be written to. Of differences, all before it are read; asked for in order, each but once."""
        if self._whole is not None:
            whole: Tensor = self._whole[number]
            return whole
        place, reached = self._reached if self._reached and self._reached[0] <= number else (0, self._start[0])
        for later in range(place, number):
            reached = reached + self._deltas[later]
        self._reached = number, reached
        if self._gap is not None:
            reached = reached + self._gap[number]
        return reached


def read_trajectory(folder: Path) -> tuple[dict[str, Track], Tensor]:
    """What a teacher step recorded in `folder`: the tracks by network (`student`; for DINO also `teacher`), and step, int64 [s].

    Raises `DdcoreError` missing_input if it recorded none, or the file is damaged.
    """
    hint = "observe a teacher that is trained here, with ssl dino, barlow_twins or simclr: its step records snapshots"
    if not (folder / NAME).exists():
        raise DdcoreError("missing_input", "the teacher has no recorded run", hint)
    try:
        file = safe_open(folder / NAME, framework="pt")
        names = set(file.keys())
        both = {"teacher", "gap"} & names
        return {name: Track(file, name) for name in (("student", "teacher") if both else ("student",))}, file.get_tensor("step")
    except (OSError, SafetensorError) as error:
        raise DdcoreError("missing_input", f"the run's snapshots, {NAME}, cannot be read: {error}", hint) from error


def read_kept(work: Path, step: int) -> dict[str, Tensor]:
    """What a recorder put aside of one step: of snapshots stored whole, `student` and for DINO `teacher`, float32 [P]."""
    return load_file(_path(work, step))


def count_snapshots(folder: Path) -> int:
    """How many snapshots a teacher step recorded in `folder`."""
    return len(read_trajectory(folder)[1])


def teacher_snapshot(folder: Path, number: int) -> Tensor:
    """The moving average's parameters, float32 [P], at snapshot `number` of a DINO run."""
    return read_trajectory(folder)[0]["teacher"].row(number)


def _relative(stored: Tensor, true: Tensor, start: Tensor) -> Tensor:
    """|stored - true| / |true - start|: [1]."""
    tiny = torch.finfo(true.dtype).tiny
    return torch.div((stored - true).norm(), (true - start).norm().clamp_min(tiny)).view(1)


def _path(work: Path, step: int) -> Path:
    return work / f"snapshot-{step}.safetensors"
