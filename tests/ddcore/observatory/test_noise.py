"""Noise and signal are those of the displacements themselves, unbiased, and undefined where runs share nothing."""

import math

import numpy as np
import pytest
import torch

from ddcore.observatory.noise import Scatter, noise_to_signal
from ddcore.observatory.pca import centred_gram

STEP = torch.tensor([0, 10, 20, 30])


def runs_of(count: int, columns: int = 400, seed: int = 0, shared: float = 1.0, own: float = 0.5) -> torch.Tensor:
    """Runs [count, 4, columns] from one start: a shared direction, and scatter of deviation `own`, both growing with time."""
    draw = torch.Generator().manual_seed(seed)
    start, common = 50 * torch.randn(columns, generator=draw).double(), torch.randn(columns, generator=draw).double()
    scatter = torch.randn(count, 1, columns, generator=draw).double()
    time = torch.arange(4).view(1, 4, 1).double()
    return start + time * (shared * common + own * scatter)


def found_in(runs: torch.Tensor) -> dict[str, list[float]]:
    """The runs' rows are handed over interleaved, and among rows of no run."""
    count, snapshots, columns = runs.shape
    rows = torch.cat([torch.full((1, columns), 7.0, dtype=runs.dtype), runs.transpose(0, 1).flatten(0, 1)])
    paths = [1 + run + count * torch.arange(snapshots) for run in range(count)]
    return noise_to_signal(centred_gram(lambda a, b: rows[:, a:b], *rows.shape), paths, STEP)


def slow(runs: np.ndarray) -> tuple[float, float]:
    """noise and signal of displacements [runs, columns], by their definitions."""
    count = len(runs)
    noise = math.sqrt(((runs - runs.mean(0)) ** 2).sum() / (count - 1))
    pairs = [runs[a] @ runs[b] for a in range(count) for b in range(count) if a != b]
    return noise, math.sqrt(np.mean(pairs))


def test_equals_the_slow_definition_with_its_jackknife() -> None:
    runs = runs_of(5)
    found = found_in(runs)
    assert (found["runs"], found["step"]) == (5, STEP.tolist())
    moved = (runs - runs[:, :1]).numpy()
    for t in (1, 2, 3):
        noise, signal = slow(moved[:, t])
        assert found["noise"][t] == pytest.approx(noise, rel=1e-9)
        assert found["signal"][t] == pytest.approx(signal, rel=1e-9)
        assert found["ratio"][t] == pytest.approx(noise / signal, rel=1e-9)
        left = [slow(np.delete(moved[:, t], run, axis=0)) for run in range(5)]
        ratios = np.array([a / b for a, b in left])
        assert found["deviation"][t] == pytest.approx(math.sqrt(4 / 5 * ((ratios - ratios.mean()) ** 2).sum()), rel=1e-6)
    assert [found[name][0] for name in ("noise", "signal", "ratio", "deviation")] == [0.0, 0.0, None, None]


def test_is_unbiased_with_three_runs_where_the_mean_displacement_is_not() -> None:
    """With truth |shared| = 20 and scatter 40, the plain length of three runs' mean would be about 30."""
    tries = [found_in(runs_of(3, seed=seed, shared=1.0, own=2.0)) for seed in range(40)]
    signal = np.sqrt(np.mean([one["signal"][1] ** 2 for one in tries]))
    noise = np.sqrt(np.mean([one["noise"][1] ** 2 for one in tries]))
    assert signal == pytest.approx(20.0, rel=0.06)
    assert noise == pytest.approx(40.0, rel=0.03)


def test_runs_that_share_nothing_have_no_ratio_and_equal_runs_no_noise() -> None:
    apart = torch.zeros(2, 4, 6, dtype=torch.float64)
    apart[0, 1:, 0], apart[1, 1:, 0] = 1.0, -1.0
    found = found_in(apart)
    assert found["signal"][1:] == [0.0] * 3
    assert found["noise"][1:] == pytest.approx([math.sqrt(2)] * 3)
    assert found["ratio"] == [None] * 4
    same = found_in(runs_of(1).expand(4, -1, -1))
    assert max(same["ratio"][1:]) < 1e-5
    assert found_in(runs_of(2))["deviation"] == [None] * 4


def test_one_run_and_runs_of_unequal_length_are_refused() -> None:
    gram = torch.eye(8, dtype=torch.float64)
    with pytest.raises(ValueError, match="1 run was given, at least 2"):
        noise_to_signal(gram, [torch.arange(4)], STEP)
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        noise_to_signal(gram, [torch.arange(4), torch.arange(4, 7)], STEP)


def test_vectors_one_by_one_give_the_same_as_all_at_once() -> None:
    vectors = runs_of(6)[:, 1].float()
    scatter = Scatter()
    for vector in vectors:
        scatter.add(vector)
    noise, signal = slow(vectors.double().numpy())
    assert scatter.ratio() == pytest.approx(noise / signal, rel=1e-9)
    apart = Scatter()
    for vector in (torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])):
        apart.add(vector)
    assert apart.ratio() is None
    with pytest.raises(ValueError, match="0 given"):
        Scatter().ratio()
