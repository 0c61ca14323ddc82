"""What a principal plane shows of a path that goes nowhere in particular: the same steps, in random order."""

from typing import Any

import torch
from torch import Tensor

from ddcore.observatory.pca import principal_plane


def shuffled_null(gram: Tensor, paths: list[Tensor], random: torch.Generator, draws: int = 20, components: int = 2) -> Tensor:
    """Shares of the variance that the PCA explains when each path's steps are re-ordered at random: float64 [draws, components].

    A PCA of any walk in many dimensions finds a smooth curve in few of them, however little there is to find (Antognini and
    Sohl-Dickstein, "PCA of high dimensional random walks with comparison to neural network training", 2018). A path's own steps,
    re-ordered, keep its ends, its steps' lengths and the angles between them; what they lose is the order in time.
    gram: inner products of rows, with any origin; paths: row numbers of each path in order of time. New rows are weighted sums of old
    ones with weights that sum to one, X' = M X, so that their inner products are M G M' and nothing is read again.
    """
    rows = torch.cat(paths)
    own, lengths = gram[rows][:, rows].double(), [len(path) for path in paths]
    found = []
    for _ in range(draws):
        mixing = torch.block_diag(*[_reordering(length, random) for length in lengths])
        found.append(_shares(mixing @ own @ mixing.T, components))
    return torch.stack(found)


def against_null(gram: Tensor, paths: list[Tensor], random: torch.Generator, draws: int = 20) -> dict[str, Any]:
    """The recorded paths' shares beside those of the null: {"explained": [2], "shuffled": [draws][2]}."""
    rows = torch.cat(paths)
    return {
        "explained": _shares(gram[rows][:, rows].double(), 2).tolist(),
        "shuffled": shuffled_null(gram, paths, random, draws).tolist(),
    }


def _reordering(length: int, random: torch.Generator) -> Tensor:
    """M [length, length]: row t is x_0 and the first t of the steps in their new order, as weights of the old snapshots."""
    steps = torch.eye(length, dtype=torch.float64).diff(dim=0)[torch.randperm(length - 1, generator=random)]
    start = torch.eye(1, length, dtype=torch.float64)
    return torch.cat([start, start + steps.cumsum(0)])


def _shares(gram: Tensor, components: int) -> Tensor:
    ends = torch.tensor([0])  # explained shares do not depend on which way a direction points
    return principal_plane(gram, ends, ends, components).explained
