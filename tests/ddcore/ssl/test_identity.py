"""The alarm on the moving average: what it measures, in both precisions, and what it refuses."""

import math

import pytest
import torch
from torch import nn

from ddcore.errors import DdcoreError
from ddcore.ssl.dino import ema_update
from ddcore.ssl.identity import EmaIdentity, refuse_broken
from ddcore.task import generator

SHAPES = ((50, 40), (50,), (7, 3, 3))


def drawn(seed: int, dtype: torch.dtype, scale: float = 1.0) -> list[torch.Tensor]:
    random = generator(seed)
    return [scale * torch.randn(shape, generator=random, dtype=dtype) for shape in SHAPES]


def residual(dtype: torch.dtype, move: float, momentum: float, stated: float, direction: int = 0) -> float:
    """Of an update with `momentum` that is said to be of `stated`, for a student `move` away from its teacher."""
    teacher, step = drawn(0, dtype), drawn(1, dtype, move)
    student = [t + s for t, s in zip(teacher, step, strict=True)]
    identity = EmaIdentity(nn.ParameterList(teacher), nn.ParameterList(student), generator(direction))
    before = identity.before()
    ema_update(nn.ParameterList(teacher), nn.ParameterList(student), momentum)
    return float(identity.residual(before, stated))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("move", [0.0, 1e-6, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.996, 1.0])
def test_the_identity_holds(dtype: torch.dtype, tolerance: float, move: float, momentum: float) -> None:
    assert max(residual(dtype, move, momentum, momentum, direction) for direction in range(5)) < tolerance


def test_the_residual_estimates_the_whole_vectors() -> None:
    """Of an update off by 0.1 of the gap: root mean square 0.1 over directions, while the gap is more than 3 % of the teacher."""
    found = [residual(torch.float64, 0.5, 0.8, 0.9, direction) for direction in range(400)]
    assert math.sqrt(sum(value**2 for value in found) / 400) == pytest.approx(0.1, rel=0.15)
    small = [residual(torch.float64, 0.003, 0.8, 0.9, direction) for direction in range(400)]
    assert math.sqrt(sum(value**2 for value in small) / 400) == pytest.approx(0.01, rel=0.15)


def test_above_the_limit_a_run_fails() -> None:
    refuse_broken(0.99e-4, 7)
    with pytest.raises(DdcoreError, match=r"at step 7 .* off by 2.0e-04 \(relative; at most 1e-04\)"):
        refuse_broken(2e-4, 7)
