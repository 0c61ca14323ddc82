"""How networks move: distances, step directions, layers, and the gap between a student and its moving average, over time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ddcore.ledger import Ledger, State
from ddcore.observatory.pca import Read

CHUNK_BYTES = 4 * 2**20  # of all rows as float64; a few arrays like it are alive at once, and the caches should hold them


class Snapshots(Protocol):
    """An array [s, P] that gives out columns: a tensor, or an array of a safetensors file that stays on disk."""

    def __getitem__(self, place: tuple[slice, slice], /) -> Tensor: ...


@dataclass(frozen=True)
class PathMotion:
    """One path of s snapshots. All float64; a cosine with a vector of length zero is NaN.

    distance_from_start [s] = |x_t - x_0|; step_length [s-1] = |x_{t+1} - x_t|; cosines [s-1, s-1] between steps;
    cosine_to_last_displacement [s-1] = cos(x_{t+1} - x_t, x_{s-1} - x_0); layer_displacement [s, layers]: distance_from_start of
    each layer alone.
    """

    distance_from_start: Tensor
    step_length: Tensor
    cosine_to_last_displacement: Tensor
    cosines: Tensor
    layer_displacement: Tensor


@dataclass(frozen=True)
class PairMotion:
    """A student x and its moving average y, with the gap y - x, which points from the student to the teacher. float64, NaN likewise.

    gap [s] = |y_t - x_t|; gap_cosine [s-1] = cos(y_t - x_t, x_{t+1} - x_t), negative while the student moves away from its average;
    displacement_cosine [s] = cos(x_t - x_0, y_t - y_0).
    """

    gap: Tensor
    gap_cosine: Tensor
    displacement_cosine: Tensor


@dataclass(frozen=True)
class Motion:
    """step int64 [s]; layers: (name, parameters) in the order of the columns; pair: of `student` and `teacher`, if both are there."""

    step: Tensor
    layers: list[tuple[str, int]]
    paths: dict[str, PathMotion]
    pair: PairMotion | None

    def to_json(self) -> dict[str, Any]:
        """The same as lists: {"step", "layers": {name: parameters}, "paths": {name: {...}}, "pair": {...} or None}; None for NaN.

        A path's `layer_displacement` is {layer: [s]}.
        """
        names = [name for name, _ in self.layers]
        paths = {}
        for name, path in self.paths.items():
            layers = dict(zip(names, path.layer_displacement.T, strict=True))
            paths[name] = {key: _listed(value) for key, value in vars(path).items()} | {
                "layer_displacement": {k: _listed(v) for k, v in layers.items()}
            }
        pair = None if self.pair is None else {key: _listed(value) for key, value in vars(self.pair).items()}
        return {"step": self.step.tolist(), "layers": dict(self.layers), "paths": paths, "pair": pair}


def joined(arrays: Mapping[str, Snapshots], shapes: Mapping[str, Sequence[int]]) -> tuple[Read, dict[str, Tensor], int]:
    """Named paths [s, P] as one reader of columns, the row numbers of each path, and P: what `motion` and the PCA ask for.

    Raises ValueError if two paths have different numbers of parameters: different networks share no space.
    """
    rows, first, columns = {}, 0, {name: shape[1] for name, shape in shapes.items()}
    one, two = min(columns, key=lambda name: columns[name]), max(columns, key=lambda name: columns[name])
    if columns[one] != columns[two]:
        sizes = f"{one!r} has {columns[one]:,} parameters and {two!r} {columns[two]:,}"
        raise ValueError(f"paths of different networks cannot be put into one plane: {sizes}; observe them one by one")
    for name, shape in shapes.items():
        rows[name] = torch.arange(first, first + shape[0])
        first += shape[0]

    def read(begin: int, end: int) -> Tensor:
        return torch.cat([array[:, begin:end] for array in arrays.values()])

    return read, rows, columns[one]


def motion(
    read: Read, rows: dict[str, Tensor], step: Tensor, layers: list[tuple[str, int]], columns: int, ledger: Ledger | None = None
) -> Motion:
    """Everything that `Motion` holds, from columns read in chunks and never held at once; sums are float64.

    read: columns of all rows, as in `ddcore.observatory.pca`. rows: each path's row numbers in order of time, one for each entry of
    `step` [s]. layers: names and numbers of parameters, in the order of the columns. ledger: of which this is the part in hand, if of
    any. Raises ValueError if layers and columns, or rows and steps, do not fit each other, or if there are fewer than two snapshots.
    """
    _check(rows, step, layers, columns)
    count = len(step)
    sums = {name: _Sums(count, len(layers)) for name in rows}
    pair = _PairSums(count) if {"student", "teacher"} <= rows.keys() else None
    width = max(1, CHUNK_BYTES // (8 * sum(map(len, rows.values()))))
    parts = [*sums.values(), *([] if pair is None else [pair])]

    def state() -> State:
        return {f"{n}.{name}": tensor for n, part in enumerate(parts) for name, tensor in vars(part).items()}, {"first": first}

    first = 0
    if ledger is not None:
        if found := ledger.resume():
            first = found[1]["first"]
            for name, tensor in state()[0].items():
                tensor.copy_(found[0][name])
        ledger.hold(state)
    while first < columns:
        if ledger is not None:
            ledger.offer()
        last = min(first + width, columns)
        part = read(first, last)
        blocks = _blocks(layers, first, last)
        for name, own in rows.items():
            sums[name].add(part[own].double(), blocks)
        if pair is not None:
            pair.add(part[rows["student"]].double(), part[rows["teacher"]].double())
        first = last
    return Motion(step, layers, {name: found.finish() for name, found in sums.items()}, pair.finish() if pair is not None else None)


def _check(rows: dict[str, Tensor], step: Tensor, layers: list[tuple[str, int]], columns: int) -> None:
    parameters = sum(size for _, size in layers)
    if parameters != columns:
        raise ValueError(f"the layers have {parameters:,} parameters and the snapshots {columns:,}: they are of different networks")
    if len(step) < 2:
        raise ValueError(f"{len(step)} snapshot shows no motion: record at least two")
    for name, own in rows.items():
        if len(own) != len(step):
            raise ValueError(f"path {name!r} has {len(own)} snapshots, but there are {len(step)} steps")


def _blocks(layers: list[tuple[str, int]], first: int, last: int) -> list[tuple[int, int, int]]:
    """The layers that columns `first` to `last` belong to: (number of the layer, where it begins and ends in these columns)."""
    blocks, begin = [], 0
    for number, (_, size) in enumerate(layers):
        low, high = max(begin, first), min(begin + size, last)
        if low < high:
            blocks.append((number, low - first, high - first))
        begin += size
    return blocks


class _Sums:
    """What one path's chunks add up to: squared displacements by layer, and inner products of steps."""

    def __init__(self, count: int, layers: int) -> None:
        self.squares = torch.zeros(count, layers, dtype=torch.float64)
        self.steps = torch.zeros(count - 1, count - 1, dtype=torch.float64)

    def add(self, path: Tensor, blocks: list[tuple[int, int, int]]) -> None:
        steps = path.diff(dim=0)
        self.steps += steps @ steps.T
        path -= path[:1].clone()
        for layer, begin, end in blocks:
            self.squares[:, layer] += torch.linalg.vector_norm(path[:, begin:end], dim=1).square()

    def finish(self) -> PathMotion:
        length = self.steps.diagonal().sqrt()
        # The last displacement is the sum of all steps.
        along, whole = self.steps.sum(1), self.steps.sum().clamp_min(0).sqrt()
        return PathMotion(
            self.squares.sum(1).sqrt(),
            length,
            _cosine(along, length * whole),
            _cosine(self.steps, length.outer(length)),
            self.squares.sqrt(),
        )


class _PairSums:
    """What the chunks of a student and a teacher add up to."""

    def __init__(self, count: int) -> None:
        self.gap, self.student, self.teacher, self.both = torch.zeros(4, count, dtype=torch.float64)
        self.along, self.steps = torch.zeros(2, count - 1, dtype=torch.float64)

    def add(self, student: Tensor, teacher: Tensor) -> None:
        gap, steps = teacher - student, student.diff(dim=0)
        self.gap += gap.square().sum(1)
        self.along += (gap[:-1] * steps).sum(1)
        self.steps += steps.square().sum(1)
        moved, followed = student - student[:1], teacher - teacher[:1]
        self.student += moved.square().sum(1)
        self.teacher += followed.square().sum(1)
        self.both += (moved * followed).sum(1)

    def finish(self) -> PairMotion:
        return PairMotion(
            self.gap.sqrt(),
            _cosine(self.along, (self.gap[:-1] * self.steps).sqrt()),
            _cosine(self.both, (self.student * self.teacher).sqrt()),
        )


def _cosine(product: Tensor, lengths: Tensor) -> Tensor:
    """product / lengths within -1..1; NaN where a length is zero, since no direction is."""
    return torch.where(lengths > 0, (product / lengths).clamp(-1, 1), torch.nan)


def _listed(values: Tensor) -> Any:
    if values.dim() > 1:
        return [_listed(row) for row in values]
    return [None if value != value else value for value in values.tolist()]
