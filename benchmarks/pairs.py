"""Time two things in turn in one process: a ratio of neighbours is hardly moved by what else the machine does."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FEWEST, MOST = 5, 51


@dataclass(frozen=True)
class Pairs:
    """Seconds of each run of both sides; the n-th runs of both were neighbours."""

    ours: list[float]
    baseline: list[float]

    @property
    def ratios(self) -> list[float]:
        return [ours / baseline for ours, baseline in zip(self.ours, self.baseline, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the paired ratios: ours over the baseline's."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third quartile of the paired ratios."""
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    def report(self) -> dict[str, float | int | list[float]]:
        """For the JSON line; times in milliseconds, medians."""
        return {
            "time_ratio": round(self.ratio, 4),
            "time_ratio_quartiles": [round(one, 4) for one in self.quartiles],
            "n_pairs": len(self.ratios),
            "ms": round(statistics.median(self.ours) * 1e3, 4),
            "baseline_ms": round(statistics.median(self.baseline) * 1e3, 4),
        }


def interleave(
    baseline: Callable[[], float], ours: Callable[[], float], repeats: int | None = None, seconds: float = 30.0, warm_up: int = 2
) -> Pairs:
    """Baseline, ours, baseline, ours, ...: each call returns the seconds it took.

    First `warm_up` runs of each are thrown away: caches, just-in-time compilation, memory that is then reused. Without `repeats`, as
    many pairs as take about `seconds`, from FEWEST to MOST. Garbage is collected before each run, and never during one.
    """
    sides = (baseline, ours)
    gc.collect()
    gc.freeze()  # what was there before is not looked through again and again
    first = sum([[_run(side) for side in sides] for _ in range(warm_up)][-1]) if warm_up else 0.0
    if repeats is None:
        repeats = min(max(FEWEST, int(seconds / max(first, 1e-6))), MOST)
    found = [[_run(side) for side in sides] for _ in range(repeats)]
    gc.unfreeze()
    return Pairs([pair[1] for pair in found], [pair[0] for pair in found])


def clocked(run: Callable[[], object], device: torch.device, times: int = 1) -> Callable[[], float]:
    """A side for `interleave`: seconds of one of `times` calls in a row, to the end of the device's work."""

    def seconds() -> float:
        wait_for(device)
        began = time.perf_counter()
        for _ in range(times):
            run()
        wait_for(device)
        return (time.perf_counter() - began) / times

    return seconds


def wait_for(device: torch.device) -> None:
    """Return once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _run(side: Callable[[], float]) -> float:
    gc.collect()
    gc.disable()
    try:
        return side()
    finally:
        gc.enable()
