"""Barlow Twins: the loss against loops over equations 1 and 2."""

import math

import pytest
import torch

from ddcore.ssl.barlow_twins import barlow_twins_loss, cross_correlation


def embeddings(seed: int) -> torch.Tensor:
    return torch.randn(9, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 1


def test_the_loss_is_the_papers() -> None:
    a, b = embeddings(0), embeddings(1)
    (za, zb) = ((z - z.mean(0)).tolist() for z in (a, b))
    expected = 0.0
    for i in range(4):
        for j in range(4):
            top = sum(za[n][i] * zb[n][j] for n in range(9))
            bottom = math.sqrt(sum(za[n][i] ** 2 for n in range(9))) * math.sqrt(sum(zb[n][j] ** 2 for n in range(9)))
            c = top / bottom
            assert float(cross_correlation(a, b)[i, j]) == pytest.approx(c, abs=1e-8)
            expected += (1 - c) ** 2 if i == j else 0.01 * c**2
    assert float(barlow_twins_loss(a, b, 0.01)) == pytest.approx(expected, abs=1e-7)


def test_scale_and_shift_do_not_matter_and_whitened_twins_cost_nothing() -> None:
    a, b = embeddings(0), embeddings(1)
    torch.testing.assert_close(barlow_twins_loss(5 * a - 2, b, 0.01), barlow_twins_loss(a, b, 0.01), rtol=1e-6, atol=1e-8)
    white = torch.linalg.qr(a - a.mean(0))[0]
    assert float(barlow_twins_loss(white, white, 0.01)) < 1e-6
