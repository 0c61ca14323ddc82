"""Principal planes of trajectories in spaces of millions of parameters, from inner products alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddcore.ledger import Ledger

CHUNK_BYTES = 64 * 2**20

Read = Callable[[int, int], Tensor]  # (first, last) -> columns first..last-1 of all rows, [n, last - first]


@dataclass(frozen=True)
class Plane:
    """coordinates float64 [n, k] of the rows along the k principal directions; explained [k], shares of the total variance."""

    coordinates: Tensor
    explained: Tensor


def centred_gram(read: Read, rows: int, columns: int, ledger: Ledger | None = None) -> Tensor:
    """Inner products, float64 [rows, rows], of row vectors minus their mean; columns are read in chunks and never held at once.

    ledger: of which this is the part in hand, if of any.
    """
    step, first = max(1, CHUNK_BYTES // (8 * rows)), 0
    gram = torch.zeros(rows, rows, dtype=torch.float64)
    if ledger is not None:
        if found := ledger.resume():
            gram, first = found[0]["gram"], found[1]["first"]
        ledger.hold(lambda: ({"gram": gram}, {"first": first}))
    while first < columns:
        if ledger is not None:
            ledger.offer()
        part = read(first, min(first + step, columns)).double()
        part = part - part.mean(0)
        gram += part @ part.T
        first += step
    return gram


def principal_plane(gram: Tensor, starts: Tensor, ends: Tensor, components: int = 2) -> Plane:
    """PCA from the Gram matrix of n vectors (any origin): with centred G = U diag(s) U', the coordinates are U diag(sqrt(s)).

    starts, ends: rows where paths begin and end. Each direction is turned so that the paths run forward along it on average.
    Directions beyond the rank have coordinates zero.
    """
    count = len(gram)
    centre = torch.eye(count, dtype=gram.dtype) - 1 / count
    values, vectors = torch.linalg.eigh(centre @ gram @ centre)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    total = float(values.sum())
    kept = min(components, count)
    coordinates = torch.zeros(count, components, dtype=gram.dtype)
    explained = torch.zeros(components, dtype=gram.dtype)
    coordinates[:, :kept] = vectors[:, :kept] * values[:kept].sqrt()
    explained[:kept] = values[:kept] / total if total > 0 else 0.0
    forward = coordinates[ends].mean(0) - coordinates[starts].mean(0)
    return Plane(coordinates * torch.where(forward < 0, -1.0, 1.0), explained)


def projected_plane(gram: Tensor, fitted: Tensor, starts: Tensor, ends: Tensor, components: int = 2) -> Plane:
    """`principal_plane` of the rows `fitted` (int64) alone, with all rows of gram projected on it; explained is of the fitted rows.

    Row x about the fitted mean has the coordinate <x, e_k> with e_k = sum_i U_ik row_i / sqrt(s_k): again inner products alone.
    """
    count = len(gram)
    centre = torch.eye(count, dtype=gram.dtype)
    centre[:, fitted] -= 1 / len(fitted)
    inner = centre @ gram @ centre.T
    values, vectors = torch.linalg.eigh(inner[fitted][:, fitted])
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    kept = min(components, len(fitted))
    coordinates, explained = torch.zeros(count, components, dtype=gram.dtype), torch.zeros(components, dtype=gram.dtype)
    lengths = values[:kept].sqrt()
    scaled = torch.where(lengths > 1e-9 * lengths[0], vectors[:, :kept] / lengths.clamp_min(1e-300), 0.0)  # no direction beyond the rank
    coordinates[:, :kept] = inner[:, fitted] @ scaled
    explained[:kept] = values[:kept] / values.sum().clamp_min(1e-300)
    forward = coordinates[ends].mean(0) - coordinates[starts].mean(0)
    return Plane(coordinates * torch.where(forward < 0, -1.0, 1.0), explained)


def displacement_gram(gram: Tensor, origins: Tensor) -> Tensor:
    """Inner products of rows minus their own origins: row i becomes row i - row origins[i]; origins int64 [n]."""
    moved = gram - gram[origins]
    return moved - moved[:, origins]


def distances(gram: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances between rows first[i] and second[i], float64."""
    squared = gram[first, first] + gram[second, second] - 2 * gram[first, second]
    return squared.clamp_min(0).sqrt()
