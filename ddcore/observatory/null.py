"""What a principal plane shows of a path that goes nowhere in particular: the same steps, in random order."""

import functools
from typing import Any

import torch
from torch import Tensor

from ddcore.ledger import Once, at_once
from ddcore.observatory.pca import principal_plane


def shuffled_null(
    gram: Tensor, paths: list[Tensor], random: torch.Generator, draws: int = 20, components: int = 2, once: Once = at_once
) -> Tensor:
    """Shares of the variance that the PCA explains when each path's steps are re-ordered at random: float64 [draws, components].

    A PCA of any walk in many dimensions finds a smooth curve in few of them, however little there is to find (Antognini and
    Sohl-Dickstein, "PCA of high dimensional random walks with comparison to neural network training", 2018). A path's own steps,
    re-ordered, keep its ends, its steps' lengths and the angles between them; what they lose is the order in time.
    gram: inner products of rows, with any origin; paths: row numbers of each path in order of time. New rows are weighted sums of old
    ones with weights that sum to one, X' = M X, so that their inner products are M G M' and nothing is read again. once: see
    `ddcore.ledger`.
    """
    rows = torch.cat(paths)
    own, lengths = gram[rows][:, rows].double(), [len(path) for path in paths]
    orders = [[torch.randperm(length - 1, generator=random) for length in lengths] for _ in range(draws)]

    def shares(order: list[Tensor]) -> Tensor:
        mixing = torch.block_diag(*[_reordering(one) for one in order])
        return _shares(mixing @ own @ mixing.T, components)

    return torch.stack([once(functools.partial(shares, order)) for order in orders])


def against_null(gram: Tensor, paths: list[Tensor], random: torch.Generator, draws: int = 20, once: Once = at_once) -> dict[str, Any]:
    """The recorded paths' shares beside those of the null: {"explained": [2], "shuffled": [draws][2]}. once: see `ddcore.ledger`."""
    rows = torch.cat(paths)
    return {
        "explained": _shares(gram[rows][:, rows].double(), 2).tolist(),
        "shuffled": shuffled_null(gram, paths, random, draws, once=once).tolist(),
    }


def _reordering(order: Tensor) -> Tensor:
    """M [s, s] from the new order of the s - 1 steps: row t is x_0 and the first t of them, as weights of the old snapshots."""
    length = len(order) + 1
    steps = torch.eye(length, dtype=torch.float64).diff(dim=0)[order]
    start = torch.eye(1, length, dtype=torch.float64)
    return torch.cat([start, start + steps.cumsum(0)])


def _shares(gram: Tensor, components: int) -> Tensor:
    ends = torch.tensor([0])  # explained shares do not depend on which way a direction points
    return principal_plane(gram, ends, ends, components).explained
