from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import workers
from ddcore.threads import cores


def test_the_ideal_is_shared_by_no_more_workers_than_cores() -> None:
    one, two, four = workers.summarise({1: [10.0, 12.0], 4: [6.0, 6.0], 2: [5.5]}, cores=2)
    assert (one["workers"], one["seconds"], one["n"], one["ideal_seconds"], one["speedup"]) == (1, 11.0, 2, 11.0, 1.0)
    assert one["deviation"] == pytest.approx(2**0.5)
    assert (two["workers"], two["ideal_seconds"], two["deviation"], two["speedup"]) == (2, 5.5, 0.0, 2.0)
    assert (four["workers"], four["ideal_seconds"], four["speedup"]) == (4, 5.5, pytest.approx(11 / 6))


def test_time_is_counted_from_the_first_claim_to_the_last_success() -> None:
    steps = [
        {"started_at": "2030-01-01T00:00:02Z", "finished_at": "2030-01-01T00:00:05Z"},
        {"started_at": "2030-01-01T00:00:01Z", "finished_at": "2030-01-01T00:00:03.5Z"},
    ]
    assert workers.span(steps) == 4.0


def test_two_workers_train_the_experts_of_a_job(last_line: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in workers.ON_CPU.items():
        monkeypatch.setenv(name, value)  # so that they are taken back
    workers.main(["--workers", "2", "--repeats", "1", "--warm-up", "0", "--shards", "2", "--epochs", "2", "--width", "8"])
    found = last_line()
    assert {"shards": 2, "experts": 2, "threads": 1, "cores": cores()}.items() <= found.items()
    (row,) = found["rows"]
    assert (row["workers"], row["n"], len(row["seconds_of_each"])) == (2, 1, 1)
    assert 0 < row["seconds"] < 100
