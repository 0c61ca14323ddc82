"""Workers of two engines on one queue: each step waits for those of its own, and no doorbell is lost on the others."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import select

from jobs.database import readers
from jobs.models import Event, Worker
from tests.worker.service import RedisServer, Service, make_service, until


@pytest.fixture
def service(tmp_path: Path, sqlite_file: Path, redis_server: RedisServer) -> Iterator[Service]:
    shutil.copy(sqlite_file, tmp_path / "potstill.db")
    service = make_service(tmp_path, redis_server.url, ring_seconds=3600.0)  # what is lost stays lost
    service.start("maintenance", "worker.maintenance")
    yield service
    service.stop()


def engines(service: Service) -> dict[str, str]:
    with readers(service.engine)() as session:
        return {row.name.partition("/")[0]: row.engine for row in session.scalars(select(Worker))}


def test_a_worker_of_another_engine_takes_no_step_and_keeps_no_doorbell(service: Service) -> None:
    service.start("other", "tests.worker.other_engine", "--name", "other", "--queues", "io")
    until(lambda: engines(service), 60)
    early = service.upload(0)
    client = redis.from_url(service.settings.redis_url)
    until(lambda: service.step(early).rings == 1 and not client.llen("io"), 20)  # heard by the wrong one alone
    service.start("own", "worker", "--name", "own", "--queues", "io")
    until(lambda: len(set(engines(service).values())) == 2, 60)
    service.wait(early, "succeeded", 60)
    for number in range(1, 5):
        step = service.wait(service.upload(number), "succeeded", 20)
        assert (step.attempt, step.failures) == (1, 0)
    with readers(service.engine)() as session:
        began = session.scalars(select(Event.data).where(Event.type == "step_started")).all()
    assert {data["worker"].partition("/")[0] for data in began} == {"own"}
