"""The load benchmark in small, and that it would notice a loss."""

from collections.abc import Callable
from typing import Any

from benchmarks.load import main
from benchmarks.load_service import lost_or_doubled, submit_jobs
from benchmarks.load_workers import QUEUE
from ddcore.plan import engine_digest
from jobs.claims import succeed, take
from tests.conftest import Database


def test_everything_comes_to_its_end_once(last_line: Callable[[], dict[str, Any]]) -> None:
    main(["--jobs", "40", "--workers", "8", "--pollers", "20", "--streams", "4", "--arrive", "0.5"])
    result = last_line()
    assert result["lost"] == []
    assert result["status_reads"] >= 40
    assert result["streams_ended"] == 20
    assert result["status_read_seconds"]["p50"] <= result["status_read_seconds"]["p99"] <= result["status_read_seconds"]["max"]


def test_what_is_lost_or_doubled_is_noticed(database: Database) -> None:
    submit_jobs(database.settings, database.engine, 2)
    assert lost_or_doubled(database.engine, 3) == {
        "steps that did not start exactly once": 2,
        "steps that did not succeed exactly once": 2,
        "jobs that did not succeed exactly once": 2,
        "jobs without exactly one result": 2,
        "jobs that are missing": 1,
        "doorbells left": 2,
    }
    for _ in range(2):
        held = database.write(lambda s: take(s, QUEUE, "w", engine_digest()))
        assert held is not None
        database.write(lambda s, held=held: succeed(s, held.step_id, held.attempt, [], {}))
    assert lost_or_doubled(database.engine, 2) == {}
