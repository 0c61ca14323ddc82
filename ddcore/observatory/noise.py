"""How much of motion is chance: of whole runs from one initialisation, and of one step, whose gradient depends on its batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddcore.observatory.pca import displacement_gram


def noise_to_signal(gram: Tensor, paths: Sequence[Tensor], step: Tensor) -> dict[str, Any]:
    """What K runs' displacements share (signal), how far they scatter (noise), and noise / signal, at each snapshot.

    gram: float64 [n, n], inner products of the rows about any origin, as `centred_gram` gives them. paths: of each run the rows of
    its s snapshots in order of time, int64 [s]; the first is where the run began. step: int64 [s].

    With d_k the displacement of run k from its start and m their mean over the runs, both lengths are square roots of unbiased
    estimates: noise^2 = sum_k |d_k - m|^2 / (K - 1), the total variance over all parameters, and
    signal^2 = |m|^2 - noise^2 / K = the mean of <d_k, d_l> over pairs of different runs. Lengths are L2, in parameters' units.

    Returns {"runs": K, "step", "signal", "noise", "ratio", "deviation"}, lists of s values. A ratio is None where signal^2 is not
    positive: the runs share nothing that K of them could show (so it is at the start). deviation: of the ratio, by the jackknife
    over runs (Efron & Stein, 1981): sqrt((K - 1) / K * sum_k (r_k - mean r)^2), r_k without run k; None where some r_k is, or K < 3.

    Raises ValueError for fewer than two runs and for runs with unequal numbers of snapshots.
    """
    if len(paths) < 2:
        raise ValueError(
            f"noise is what differs between runs: {len(paths)} run was given, at least 2 are needed; observe with runs=2 or more"
        )
    lengths = sorted({len(path) for path in (*paths, step)})
    if len(lengths) > 1:
        raise ValueError(f"runs must have equal numbers of snapshots, but there are {lengths}; record all with the same `snapshots`")
    rows = torch.stack(list(paths))
    origins = torch.arange(len(gram))
    origins[rows] = rows[:, :1].expand_as(rows)
    moved = displacement_gram(gram, origins)
    blocks = moved[rows.T.unsqueeze(2), rows.T.unsqueeze(1)]  # [s, K, K]: inner products of the runs' displacements
    found: dict[str, Any] = {"runs": len(paths), "step": step.tolist(), "signal": [], "noise": [], "ratio": [], "deviation": []}
    for block in blocks:
        signal, noise = _lengths(block)
        found["signal"].append(signal)
        found["noise"].append(noise)
        found["ratio"].append(_ratio(block))
        found["deviation"].append(_jackknife(block))
    return found


@dataclass
class Scatter:
    """The same estimates from vectors that come one after another, such as the gradients of B batches: only their sum is kept.

    noise^2 is the total variance of one vector over all its dimensions, signal^2 the squared length of the vectors' true mean.
    """

    count: int = 0
    total: Tensor | None = None  # float64 [P], the sum of all vectors
    squares: float = 0.0  # the sum of their squared lengths

    def add(self, vector: Tensor) -> None:
        """vector: [P]."""
        own = vector.detach().double()
        self.total = own.clone() if self.total is None else self.total.add_(own)
        self.squares += float(own.square().sum())
        self.count += 1

    def ratio(self) -> float | None:
        """noise / signal; None where signal^2 is not positive. Raises ValueError for fewer than two vectors."""
        if self.total is None or self.count < 2:
            raise ValueError(f"scatter is what differs between vectors: {self.count} given, at least 2 are needed")
        signal, noise = _estimates(self.squares, float(self.total.square().sum()), self.count)
        return noise / signal if signal > 0 else None


def _estimates(own: float, all_pairs: float, count: int) -> tuple[float, float]:
    """Signal and noise of `count` vectors, from sum_k |v_k|^2 and |sum_k v_k|^2."""
    noise = (own - all_pairs / count) / (count - 1)
    signal = (all_pairs - own) / (count * (count - 1))
    return math.sqrt(max(signal, 0.0)), math.sqrt(max(noise, 0.0))


def _lengths(block: Tensor) -> tuple[float, float]:
    """Signal and noise from the inner products [K, K] of displacements."""
    return _estimates(float(block.diagonal().sum()), float(block.sum()), len(block))


def _ratio(block: Tensor) -> float | None:
    signal, noise = _lengths(block)
    return noise / signal if signal > 0 else None


def _jackknife(block: Tensor) -> float | None:
    runs = len(block)
    if runs < 3 or _ratio(block) is None:
        return None
    others = [[run for run in range(runs) if run != left_out] for left_out in range(runs)]
    ratios = [ratio for kept in others if (ratio := _ratio(block[kept][:, kept])) is not None]
    if len(ratios) < runs:
        return None
    mean = sum(ratios) / runs
    return math.sqrt((runs - 1) / runs * sum((ratio - mean) ** 2 for ratio in ratios))
