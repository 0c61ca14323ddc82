import threading
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError

from jobs import claims
from jobs.database import sessions, transact
from jobs.models import Metric, Step
from jobs.settings import Settings
from tests.worker.service import post, until
from worker import recorder as module
from worker.recorder import Recorder


@pytest.fixture
def claimed(settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> str:
    """A running step, and a recorder that writes every 20 ms."""
    monkeypatch.setattr(module, "_EVERY", 0.02)
    _, steps = post(settings, engine, num_images=4, method={"name": "random"})
    step_id = next(step for name, step in steps.items() if name.startswith("dataset"))
    transact(sessions(engine), lambda s: claims.claim(s, step_id, "me"))
    return step_id


def progress(done: int) -> dict[str, Any]:
    return {"type": "progress", "done": done, "total": 100, "unit": "images", "note": ""}


def metric(x: float) -> dict[str, Any]:
    return {"type": "metric", "name": "loss", "x": x, "value": 2 * x}


def recorded(engine: Engine, step_id: str) -> tuple[int | None, list[float]]:
    with sessions(engine)() as session:
        points = session.scalars(select(Metric.x).where(Metric.step_id == step_id).order_by(Metric.x))
        return session.get_one(Step, step_id).done, list(points)


def test_metrics_are_all_kept_and_progress_is_the_latest(engine: Engine, claimed: str) -> None:
    recorder = Recorder(sessions(engine), claimed, 1, lambda: None)
    for x in range(50):
        recorder(metric(x))
        recorder(progress(x))
    until(lambda: recorded(engine, claimed) == (49, list(range(50))), 5)
    assert recorder.close() == []


def test_a_database_that_is_away_for_a_while_loses_nothing(engine: Engine, claimed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = module.record, []

    def record(*arguments: Any) -> None:
        tries.append(arguments[3])
        if len(tries) <= 3:
            raise OperationalError("insert", {}, Exception("connection refused"))
        real(*arguments)

    monkeypatch.setattr(module, "record", record)
    recorder = Recorder(sessions(engine), claimed, 1, lambda: None)
    recorder(progress(1))
    recorder(metric(1))
    until(lambda: tries, 5)
    recorder(metric(2))
    recorder(progress(7))
    until(lambda: recorded(engine, claimed) == (7, [1, 2]), 5)
    recorder.close()
    assert len(tries) >= 4


def test_what_is_not_recorded_at_the_end_is_handed_back(engine: Engine, claimed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY", 100.0)
    recorder = Recorder(sessions(engine), claimed, 1, lambda: None)
    for event in (metric(1), progress(3), progress(4)):
        recorder(event)
    assert recorder.close() == [metric(1), progress(4)]


def test_a_lost_lease_is_told_at_once(engine: Engine, claimed: str) -> None:
    lost = threading.Event()
    recorder = Recorder(sessions(engine), claimed, 1, lost.set)
    transact(sessions(engine), lambda s: claims.release(s, claimed, 1))
    recorder(progress(5))
    assert lost.wait(5)
    assert recorded(engine, claimed)[0] is None
    recorder.close()
