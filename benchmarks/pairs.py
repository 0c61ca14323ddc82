"""Time two things in turn in one process: a ratio of neighbours is hardly moved by what else the machine does."""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FEWEST, MOST = 3, 51


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


def add_options(parser: argparse.ArgumentParser, each: str, seconds: float) -> None:
    """Where, how often and how long: the same words for every benchmark. each: what one row is made for."""
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="as the engine decides when absent")
    parser.add_argument("--repeats", type=int, help="timed pairs; as many as fit --seconds when absent")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"time for the pairs of each {each} (at least three are made)")


def interleave(
    baseline: Callable[[], float], ours: Callable[[], float], repeats: int | None = None, seconds: float = 30.0, warm_up: int = 2
) -> Pairs:
    """Baseline, ours, baseline, ours, ...: each call returns the seconds it took.

    First `warm_up` runs of each are thrown away: caches, just-in-time compilation, memory that is then reused. Without `repeats`, there
    are pairs until they have taken `seconds`, from FEWEST to MOST. Garbage is collected before each run, and never during one.
    """
    gc.collect()
    gc.freeze()  # what was there before is not looked through again and again
    fewest, most = (FEWEST, MOST) if repeats is None else (repeats, repeats)
    for _ in range(warm_up):
        _run(baseline), _run(ours)
    pairs = Pairs([], [])
    while (done := len(pairs.ours)) < fewest or (done < most and sum(pairs.ours) + sum(pairs.baseline) < seconds):
        pairs.baseline.append(_run(baseline))
        pairs.ours.append(_run(ours))
    gc.unfreeze()
    return pairs


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
