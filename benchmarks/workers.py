"""`python -m benchmarks.workers [--workers 1 2 4]`: the wall time of one job's experts, spread over one and more workers of one machine.

The whole service runs as `potstill up` starts it (API, Redis, SQLite, maintenance loop), its workers on the CPU with one thread each.
Time is counted from the first claim of a shard of experts to the last success of one. Numbers of workers take turns, and each turn
trains experts that no turn before it did. The last line is one JSON object:

    cores, cpu, torch, potstill    the machine and the versions
    shards, experts                of the job
    rows                           for each number of workers: seconds (mean), deviation, n, ideal_seconds, speedup, seconds_of_each
"""

import argparse
import contextlib
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import facts
from benchmarks.output import facts_line, finish, table
from ddcore.threads import cores
from potstill.client import Client
from potstill.errors import PotstillError
from potstill.stack import Stack

READY_SECONDS, JOB_SECONDS = 120.0, 3600.0
ON_CPU = {"POTSTILL_DEVICE": "cpu", "POTSTILL_THREADS": "1", "OMP_NUM_THREADS": "1"}


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    os.environ |= ON_CPU
    times: dict[int, list[float]] = {number: [] for number in options.workers}
    with tempfile.TemporaryDirectory(prefix="potstill-workers-") as home:
        for repeat in range(options.repeats + options.warm_up):
            for number in options.workers:
                seconds = _measure(
                    Path(home), number, spec_of(options, fresh=repeat * len(options.workers) + options.workers.index(number))
                )
                if repeat >= options.warm_up:
                    times[number].append(seconds)
    rows = summarise(times, cores())
    found = {"cores": cores(), **facts(torch.device("cpu")), "python": platform.python_version(), "potstill": version("potstill")}
    found |= {"threads": 1, "shards": options.shards, "experts": options.shards * options.per_shard}
    print(facts_line(found))
    heads = ("workers", "seconds", "deviation", "n", "ideal", "speed-up")
    print(table(heads, [_cells(row) for row in rows]))
    finish(found | {"rows": rows})


def summarise(times: dict[int, list[float]], cores: int) -> list[dict[str, Any]]:
    """A row for each number of workers. ideal_seconds: what the fewest took, divided among as many workers as there are cores for."""
    fewest = min(times)
    whole = statistics.mean(times[fewest]) * min(fewest, cores)
    rows = []
    for number, seconds in sorted(times.items()):
        mean, ideal = statistics.mean(seconds), whole / min(number, cores)
        spread = statistics.stdev(seconds) if len(seconds) > 1 else 0.0
        row = {"workers": number, "seconds": mean, "deviation": spread, "n": len(seconds), "ideal_seconds": ideal}
        rows.append(row | {"speedup": statistics.mean(times[fewest]) / mean, "seconds_of_each": seconds})
    return rows


def spec_of(options: argparse.Namespace, fresh: int) -> dict[str, Any]:
    """A distillation whose teacher every turn shares, and whose experts are of this turn alone."""
    return {
        "preset": "smoke",
        "student": {"depth": 2, "width": options.width},
        # A rate that differs in its last digits makes other experts, of the same cost.
        "experts": {"num": options.shards * options.per_shard, "per_shard": options.per_shard, "lr": 0.1 + 1e-9 * (fresh + 1)},
        "method": {"name": "mkdt", "iterations": 1, "expert_epochs": 1, "max_start_epoch": options.epochs - 1},
    }


def span(steps: Sequence[dict[str, Any]]) -> float:
    """Seconds from the first claim to the last success."""
    begun = [datetime.fromisoformat(step["started_at"]) for step in steps]
    ended = [datetime.fromisoformat(step["finished_at"]) for step in steps]
    return (max(ended) - min(begun)).total_seconds()


def _measure(home: Path, workers: int, spec: dict[str, Any]) -> float:
    with Stack(home, workers=workers, say=lambda line: None) as stack, Client(stack.url) as client:
        # One that has noted its device has loaded the engine.
        _wait(stack, READY_SECONDS, lambda: sum(bool(one["device"]) for one in client.get("/workers")["data"]) >= workers)
        job_id = client.distill(spec)["id"]
        experts: list[dict[str, Any]] = []

        def over() -> bool:
            job = client.job(job_id)
            if job["state"] in ("failed", "cancelled"):
                raise SystemExit(f"the job has {job['state']}: {job['error']}")
            experts[:] = [step for step in job["steps"] if step["name"].startswith("experts-")]
            return all(step["state"] == "succeeded" for step in experts)

        _wait(stack, JOB_SECONDS, over)
        if any(step["attempt"] != 1 or step["cached"] for step in experts):
            raise SystemExit("experts were not all trained in this turn, and in one go")
        with contextlib.suppress(PotstillError):  # it has ended
            client.cancel(job_id)  # what comes after the experts would be in the way of the next turn
        return span(experts)


def _wait(stack: Stack, seconds: float, condition: Any) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the service did not get there in time")
        stack.check()
        time.sleep(0.2)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    figures = (f"{row[name]:.2f}" for name in ("seconds", "deviation"))
    return (str(row["workers"]), *figures, str(row["n"]), f"{row['ideal_seconds']:.2f}", f"{row['speedup']:.2f}")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description="One job's experts on one and more workers.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], metavar="K", help="(%(default)s)")
    for name, default, text in (
        ("repeats", 5, "turns of each number of workers"),
        ("warm-up", 1, "turns before them that do not count; the first trains the teacher"),
        ("shards", 12, "steps that train experts"),
        ("per-shard", 1, "experts of each"),
        ("epochs", 40, "of an expert"),
        ("width", 32, "of the student"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="K", help=f"{text} (%(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
