"""The loss around an expert: along its path, on a plane of chance directions through its end, and on the plane of its path.

Only of experts that regress targets. What a teacher minimises depends on its heads too, which its snapshots do not hold.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddcore.events import Reporter
from ddcore.experts.store import Trajectories
from ddcore.ledger import Once, at_once
from ddcore.matching.cores import inner_loss
from ddcore.networks.flat import FlatNetwork
from ddcore.observatory.pca import centred_gram, displacement_gram
from ddcore.observatory.recordings import told
from ddcore.observatory.regression import Regressed
from ddcore.task import generator

IMAGES = 512  # on which the loss is taken; fewer, but LEAST, where a network's feature maps are large
LEAST = 64
LARGEST = 1 << 24  # numbers in the sample's largest feature map: with it, a plane takes about half a minute of a CPU core
SIDE = 15  # of each grid, so 225 evaluations a plane
POINTS = 40  # along the path, about
MARGIN = 0.25  # of the path's extent, on each side of its plane
_CHUNK = 128

Loss = Callable[[Tensor], float]


@dataclass(frozen=True)
class PathPlane:
    """The plane through a path's end that shows most of the path: its moves from the end are projected on their leading directions.

    directions: unit vectors float32 [2, P]; path: float64 [s, 2], the end at the origin, the start to its left; explained [2]: shares of
    the summed squared distances from the end.
    """

    directions: Tensor
    path: Tensor
    explained: list[float]


def filter_normalised(network: FlatNetwork, theta: Tensor, random: torch.Generator) -> Tensor:
    """A random direction [P] in which every filter is as long as the same filter of theta (Li et al., 1712.09913, section 4).

    A filter is what makes one output: a slice of a weight along its first dimension. Biases and the scales and shifts of norms, which
    have one dimension, do not move. So a unit step perturbs each filter by its own length, and networks compare whatever their scale.
    """
    parts = []
    for weight in network.split(theta).values():
        drawn = torch.randn(weight.shape, generator=random).to(theta.device)
        if weight.ndim < 2:
            parts.append(torch.zeros_like(weight))
            continue
        own, new = (part.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1)) for part in (weight, drawn))
        parts.append(drawn * own / new.clamp_min(1e-12))
    return torch.cat([part.flatten() for part in parts])


def path_plane(store: Trajectories, expert: int, reporter: Reporter) -> PathPlane:
    """The leading directions of one expert's path, with no more than a few snapshots in memory at a time."""
    count, end = store.num_snapshots, store.num_snapshots - 1
    read = told(reporter, lambda first, last: store.columns(expert, first, last), store.num_parameters, "plane of the path")
    gram = centred_gram(read, count, store.num_parameters)
    moves = displacement_gram(gram, torch.full((count,), end))
    values, vectors = torch.linalg.eigh(moves)
    values, vectors = values.flip(0)[:2].clamp_min(0), vectors.flip(1)[:, :2]
    lengths = torch.where(values > 1e-12 * values[0], values.sqrt(), 0.0)  # a straight path has but one direction
    path = vectors * lengths
    turned = torch.where(path[0] > 0, -1.0, 1.0).double()
    weights = torch.where(lengths > 0, vectors / lengths.clamp_min(1e-300), 0.0) * turned
    directions, last = torch.zeros(2, store.num_parameters), store.row(expert, end)
    for snapshot in range(end):
        reporter.pulse()
        directions += weights[snapshot].float().unsqueeze(1) * (store.row(expert, snapshot).cpu() - last.cpu())
    return PathPlane(directions, path * turned, (values / moves.trace().clamp_min(1e-300)).tolist())


def landscape(learnt: Regressed, store: Trajectories, expert: int, seed: int, reporter: Reporter, once: Once = at_once) -> dict[str, Any]:
    """The squared error on one fixed sample of the real images, whole and without views, in three looks.

    Returns {"images": in the sample, "path": {"epoch", "loss"} at and between the snapshots (straight lines between),
    "around": {"x", "y", "loss" [y][x]} over two filter-normalised directions through the last snapshot, in units of the filters' lengths,
    "plane": the same over the two directions of `path_plane`, in L2 units, with "path" [s][2] and "explained"}. A loss that is not finite
    is None. About POINTS + 2 * SIDE^2 evaluations; reports each, and can be stopped. once: see `ddcore.ledger`.
    """
    network, device = learnt.core.network, learnt.data.targets.device
    random = generator(seed, "observe", "landscape")
    end, plane = store.row(expert, store.num_snapshots - 1).to(device), path_plane(store, expert, reporter)
    between = max(1, round(POINTS / (store.num_snapshots - 1)))
    times = [place / between for place in range((store.num_snapshots - 1) * between + 1)]
    loss, images = _sampled_loss(learnt, random, reporter, len(times) + 2 * SIDE**2, once)
    chance = [filter_normalised(network, end, random) for _ in range(2)]
    wide, high = _extent(plane.path)
    unit = [-1 + 2 * place / (SIDE - 1) for place in range(SIDE)]
    return {
        "images": images,
        "path": {"epoch": times, "loss": [_finite(loss(_between(store, expert, time).to(device))) for time in times]},
        "around": {"x": unit, "y": unit, "loss": _grid(loss, end, chance, unit, unit)},
        "plane": {
            "x": wide,
            "y": high,
            "loss": _grid(loss, end, list(plane.directions.to(device)), wide, high),
            "path": plane.path.tolist(),
            "explained": plane.explained,
        },
    }


def _sampled_loss(learnt: Regressed, random: torch.Generator, reporter: Reporter, evaluations: int, once: Once) -> tuple[Loss, int]:
    """The loss as a function of theta [P], and how many images it is taken on."""
    network, done = learnt.core.network, iter(range(evaluations))
    fitting = IMAGES if network.largest_map is None else max(LEAST, LARGEST // network.largest_map)
    rows = torch.randperm(len(learnt.data.images), generator=random)[: min(IMAGES, fitting)].to(learnt.data.targets.device)
    parts = [(learnt.data.images.batch(some), learnt.data.targets[some]) for some in rows.split(_CHUNK)]

    @torch.no_grad()
    def loss(theta: Tensor) -> float:
        reporter.progress(next(done), evaluations, "losses", "landscape")

        def total() -> float:
            found = 0.0
            for x, y in parts:
                reporter.pulse()
                found += float(inner_loss(network, theta, x, y)) * len(y)
            return found

        whole: float = once(total)
        return whole / len(rows)

    return loss, len(rows)


def _between(store: Trajectories, expert: int, time: float) -> Tensor:
    """Parameters at a time in snapshots, on the straight line from the one before to the one after."""
    before = min(int(time), store.num_snapshots - 2)
    return torch.lerp(store.row(expert, before).cpu(), store.row(expert, before + 1).cpu(), time - before)


def _grid(loss: Loss, centre: Tensor, directions: Sequence[Tensor], x: list[float], y: list[float]) -> list[list[float | None]]:
    return [[_finite(loss(centre + a * directions[0] + b * directions[1])) for a in x] for b in y]


def _extent(path: Tensor) -> tuple[list[float], list[float]]:
    """SIDE places along each axis that hold the path with a margin; the second axis has at least a third of the first one's length."""
    low, high = path.min(0).values, path.max(0).values
    span = (high - low).clamp_min(1e-12)
    span[1] = torch.maximum(span[1], span[0] / 3)
    middle = (low + high) / 2
    half = (0.5 + MARGIN) * span
    x, y = (torch.linspace(float(middle[axis] - half[axis]), float(middle[axis] + half[axis]), SIDE).tolist() for axis in (0, 1))
    return x, y


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
