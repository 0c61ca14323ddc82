"""A service under load: nothing lost, nothing doubled, quick answers. `python -m benchmarks.load`

A real PostgreSQL, durable as it comes, and one API process. Jobs of one step that does nothing are posted; then workers that claim and
finish steps as fast as they can, people who poll for the status of their jobs, and people who follow event streams, come all at once.
Afterwards the database is asked whether every step started and succeeded exactly once and every job ended once, the people whether they
saw it, and the times of the status reads are told. All of it shares this machine's cores.

The last line is one JSON object. Exit status 1 if anything was lost or doubled, or if the 99th percentile of the status reads is not
under LIMIT.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine

from benchmarks import load_service
from benchmarks.output import facts_line, finish, table
from jobs.settings import Settings

LIMIT = 0.250  # seconds, 99th percentile of the status reads
API_POOL = 10  # connections; the setting's default
GIVE_UP = 120.0  # seconds without a success
Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="potstill-") as folder,
        load_service.postgresql(options.workers + 40) as (database_url, database),
    ):
        settings = Settings(home=Path(folder), database_url=database_url)
        engine = load_service.prepare(settings)
        try:
            result = _measure(options, settings, engine, database)
        finally:
            engine.dispose()
    finish(result)
    return 0 if result["passed"] else 1


def _measure(options: argparse.Namespace, settings: Settings, engine: Engine, database: psutil.Process) -> Result:
    facts = _facts(engine)
    print(facts_line(facts), flush=True)
    began = time.monotonic()
    jobs = load_service.submit_jobs(settings, engine, options.jobs)
    posted = options.jobs / (time.monotonic() - began)
    print(f"{options.jobs:,} jobs posted, {posted:.0f} a second", flush=True)
    env = load_service.environment(settings.home, settings.database_url, API_POOL)
    own = load_service.environment(settings.home, settings.database_url, options.workers + 5)
    ids = settings.home / "ids"
    ids.write_text("\n".join(jobs))
    people = ("--pollers", options.pollers, "--streams", options.streams, "--arrive", options.arrive)
    with load_service.api(settings.home, env) as (url, api):
        parts = {"api": api, "postgresql": database}
        before = {name: load_service.cpu_seconds(process) for name, process in parts.items()}
        with (
            _started("load_clients", env, url, ids, *people) as crowd,
            _started("load_workers", own, "--workers", options.workers, "--jobs", options.jobs, "--give-up", GIVE_UP) as crew,
        ):
            worked = _answer(crew, None)
            watched = _answer(crowd, GIVE_UP)
        cpu = {name: load_service.cpu_seconds(process) - before[name] for name, process in parts.items()}
    result = facts | vars(options) | {"posted_per_second": posted, "cpu_seconds": cpu}
    return _verdict(result, worked, watched, load_service.lost_or_doubled(engine, options.jobs), options)


@contextmanager
def _started(module: str, env: dict[str, str], *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # if it has not ended by itself


def _answer(process: subprocess.Popen[str], timeout: float | None) -> Result:
    """The last line of its output; nothing if it did not end in time, or ended badly."""
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return {}
    return dict(json.loads(out.splitlines()[-1])) if process.returncode == 0 else {}


def _verdict(result: Result, worked: Result, watched: Result, wrong: dict[str, int], options: argparse.Namespace) -> Result:
    lost = [f"{number} {what}" for what, number in wrong.items()]
    if not worked or worked["succeeded"] != options.jobs:
        lost.append(f"the workers finished {worked.get('succeeded', 'an unknown number')} of {options.jobs} steps")
    if not watched:
        return result | {"passed": False, "lost": [*lost, "the pollers and streams did not all see their jobs end"]}
    lost += [*watched["wrong"][:10], *([f"{len(watched['missed'])} jobs whose end no poller saw once"] if watched["missed"] else [])]
    reads = _spread(watched["polls"])
    result |= {
        "lost": lost,
        "seconds": watched["seconds"],
        "status_reads": len(watched["polls"]),
        "status_reads_per_second": len(watched["polls"]) / watched["seconds"],
        "status_read_seconds": reads,
        "pause_seconds": _spread(watched["pauses"]),
        "streams_ended": watched["streams"],
        "stream_lag_seconds": _spread(watched["lags"]),
        "claims_per_second": worked.get("claims_per_second"),
        "claim_seconds": _spread(worked.get("claim_seconds", [])),
        "passed": not lost and reads["p99"] < LIMIT,
    }
    _print(result)
    return result


def _spread(ordered: Sequence[float]) -> dict[str, float]:
    """Mean, percentiles and greatest of numbers in rising order."""
    if not ordered:
        return {}
    at = {f"p{p}": ordered[min(len(ordered) * p // 100, len(ordered) - 1)] for p in (50, 95, 99)}
    return {"mean": sum(ordered) / len(ordered), **at, "max": ordered[-1]}


def _print(result: Result) -> None:
    heads = ("", "number", "a second", "mean ms", "p50", "p95", "p99", "max")
    rows = [
        _row("status reads", result["status_reads"], result["status_reads_per_second"], result["status_read_seconds"]),
        _row("claims", result["jobs"], result["claims_per_second"], result["claim_seconds"]),
        _row("ends of streams", result["streams_ended"], None, result["stream_lag_seconds"]),
        _row("pauses of pollers", result["status_reads"] - result["jobs"], None, result["pause_seconds"]),
    ]
    print(table(heads, rows))
    print("processor seconds: " + ", ".join(f"{name} {spent:.1f}" for name, spent in result["cpu_seconds"].items()))
    for one in result["lost"] or ["nothing lost, nothing doubled"]:
        print(one)
    p99 = result["status_read_seconds"]["p99"]
    print(f"{'passed' if result['passed'] else 'FAILED'}: 99 % of the status reads within {1000 * p99:.0f} ms (limit {1000 * LIMIT:.0f})")


def _row(name: str, number: int, rate: float | None, spread: dict[str, float]) -> tuple[str, ...]:
    times = [f"{1000 * spread[what]:.0f}" if spread else "-" for what in ("mean", "p50", "p95", "p99", "max")]
    return (name, f"{number:,}", "-" if rate is None else f"{rate:.0f}", *times)


def _facts(engine: Engine) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    versions = {name: version(name) for name in ("fastapi", "uvicorn", "sqlalchemy", "psycopg")}
    return {"cpu": cpu, "cores": os.cpu_count(), "postgresql": load_service.server_version(engine), **versions}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--pollers", type=int, default=2_000, help="at most as many as jobs")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--arrive", type=float, default=20.0, help="seconds within which pollers and streams come, at random")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that nothing it started stays behind
    sys.exit(main())
