"""Intervals agree with scipy, one seed has none, and pairing averages label draws before it subtracts."""

import math

import numpy as np
import pytest
from scipy import stats

from ddcore.evaluation.statistics import by_seed, estimate, paired


def test_interval_is_scipys_and_the_deviation_divides_by_n_minus_one() -> None:
    values = [61.2, 59.8, 63.1, 60.0, 62.5]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert found.n == 5
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        found = estimate(draw.normal(3.0, 2.0, 4).tolist())
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 3.0 <= found.high
    assert abs(hits / 400 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 400)


def test_one_seed_has_no_interval_and_says_so() -> None:
    found = estimate([50.0])
    assert (found.mean, found.std, found.n, found.low, found.high) == (50.0, None, 1, None, None)
    assert "one seed" in found.words()


def test_draws_are_averaged_within_a_seed_so_that_n_counts_seeds() -> None:
    ours = by_seed([(0, 10.0), (0, 20.0), (1, 30.0), (1, 40.0), (2, 35.0)])
    theirs = by_seed([(0, 9.0), (0, 17.0), (1, 33.0), (1, 33.0), (2, 34.0)])
    assert ours == {0: 15.0, 1: 35.0, 2: 35.0}
    found = paired(ours, theirs)
    assert found.n == 3
    assert found.mean == pytest.approx((2 + 2 + 1) / 3)
    assert found.std == pytest.approx(np.std([2, 2, 1], ddof=1))


def test_different_seeds_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="seeds differ"):
        paired({0: 1.0}, {1: 1.0})


def test_words_write_gains_with_a_sign() -> None:
    assert estimate([1.0, 2.0, 3.0]).words(sign=True) == "+2.0 ± 1.0 [-0.5, +4.5]"
    assert estimate([-0.01, 0.01, -0.03]).words(sign=True) == "0.0 ± 0.0 [-0.1, 0.0]"
