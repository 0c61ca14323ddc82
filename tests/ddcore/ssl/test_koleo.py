"""KoLeo: against its definition in loops, and what it does to features."""

import math

import pytest
import torch

from ddcore.ssl.koleo import koleo_loss


def features(count: int = 9, width: int = 5) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4


def test_the_loss_is_the_papers() -> None:
    x = [[value / math.hypot(*row) for value in row] for row in features().tolist()]
    nearest = [min(math.dist(x[i], x[j]) for j in range(9) if j != i) for i in range(9)]
    assert float(koleo_loss(features())) == pytest.approx(-sum(math.log(d) for d in nearest) / 9, abs=1e-7)


def test_the_gradient_is_that_of_the_distances() -> None:
    assert torch.autograd.gradcheck(koleo_loss, features().requires_grad_())  # type: ignore[no-untyped-call]


def test_descending_spreads_the_features() -> None:
    def nearest(x: torch.Tensor) -> float:
        unit = torch.nn.functional.normalize(x.detach(), dim=1)
        return float((torch.cdist(unit, unit) + 9 * torch.eye(6)).min())

    x = (torch.ones(6, 3, dtype=torch.float64) + 0.1 * features(6, 3)).requires_grad_()
    assert nearest(x) < 0.2
    for _ in range(300):
        (gradient,) = torch.autograd.grad(koleo_loss(x), x)
        x = (x - 0.02 * gradient).detach().requires_grad_()
    assert nearest(x) > 0.8  # six points on a sphere are at most 1.41 apart


def test_equal_features_and_half_precision_keep_the_loss_and_its_gradient_finite() -> None:
    x = features().float()
    x[3] = x[0]
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo_loss(x)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float32
    assert math.isfinite(float(loss.detach()))
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
