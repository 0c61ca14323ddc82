"""Means and Student-t intervals over seeds; a single seed gets no interval, because it has none."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

from scipy.stats import t as student_t


@dataclass(frozen=True)
class Estimate:
    """A mean with what is known of its error: deviation with n-1 in the denominator, and a 95 % interval for the mean.

    std, low and high are None when n is 1: one seed says nothing of the spread.
    """

    mean: float
    std: float | None
    n: int
    low: float | None
    high: float | None

    def fields(self) -> dict[str, float | int | None]:
        return asdict(self)

    def words(self, sign: bool = False) -> str:
        """Such as `61.3 ± 1.2 [59.8, 62.8]`: mean, deviation and interval; `sign` writes a plus before gains."""
        mean, low, high = (None if value is None else _decimal(value, sign) for value in (self.mean, self.low, self.high))
        if self.std is None or low is None or high is None:
            return f"{mean} (one seed: no interval)"
        return f"{mean} ± {self.std:.1f} [{low}, {high}]"


def _decimal(value: float, sign: bool) -> str:
    """One decimal place, and no minus before a zero."""
    text = f"{value:{'+.1f' if sign else '.1f'}}"
    return text.lstrip("+-") if float(text) == 0 else text


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean, sample deviation (ddof = 1), n and the two-sided Student-t interval of independent `values` (at least one)."""
    mean, n = fmean(values), len(values)
    if n == 1:
        return Estimate(mean, None, 1, None, None)
    std = stdev(values)
    reach = float(student_t.ppf((1 + confidence) / 2, n - 1)) * std / math.sqrt(n)
    return Estimate(mean, std, n, mean - reach, mean + reach)


def by_seed(pairs: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Average the values of each seed. Label draws within a seed share a network, so they are not independent samples."""
    values: defaultdict[int, list[float]] = defaultdict(list)
    for seed, value in pairs:
        values[seed].append(value)
    return {seed: fmean(of_seed) for seed, of_seed in sorted(values.items())}


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate:
    """The estimate of `ours - theirs` over their seeds, which must be the same."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"seeds differ, so nothing can be paired: {sorted(ours)} and {sorted(theirs)}")
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours)])
