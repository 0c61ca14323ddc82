"""SimCLR: NT-Xent against a loop over equation 1."""

import math

import pytest
import torch

from ddcore.ssl.simclr import nt_xent


def test_the_loss_is_the_papers() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    z = [row for pair in zip(first.tolist(), second.tolist(), strict=True) for row in pair]  # the paper's order: 2k-1 and 2k are a pair

    def similarity(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(z[i], z[j], strict=True))
        return dot / math.hypot(*z[i]) / math.hypot(*z[j])

    def pair_loss(i: int, j: int) -> float:
        others = sum(math.exp(similarity(i, k) / 0.3) for k in range(12) if k != i)
        return -math.log(math.exp(similarity(i, j) / 0.3) / others)

    expected = sum(pair_loss(2 * k, 2 * k + 1) + pair_loss(2 * k + 1, 2 * k) for k in range(6)) / 12
    assert float(nt_xent(first, second, 0.3)) == pytest.approx(expected, abs=1e-12)
