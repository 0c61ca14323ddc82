"""Real processes on PostgreSQL: a worker that freezes or dies, and another that takes over."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from jobs.database import sessions
from jobs.models import Artifact, Event
from tests.conftest import Database
from tests.worker.service import RedisServer, Service, gone, make_service, runner_of, until


@pytest.fixture
def service(database: Database, tmp_path: Path, redis_server: RedisServer) -> Iterator[Service]:
    service = make_service(tmp_path, redis_server.url, database_url=database.settings.database_url)
    service.start("maintenance", "worker.maintenance")
    service.worker("one")
    yield service
    service.stop()


def count(engine: Engine, step_id: str) -> tuple[int, int]:
    """How often the step has succeeded, and how many files it shows."""
    with sessions(engine)() as session:
        successes = select(func.count()).select_from(Event).where(Event.step_id == step_id, Event.type == "step_succeeded")
        files = select(func.count()).select_from(Artifact).where(Artifact.step_id == step_id)
        return session.scalar(successes) or 0, session.scalar(files) or 0


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_another_worker_takes_over_and_the_first_disturbs_nothing(service: Service) -> None:
    frozen = service.upload(1, count=2000)
    runner = runner_of(service, "one", frozen, 1)
    for group in (service.processes["one"].pid, runner):
        os.killpg(group, signal.SIGSTOP)
    service.worker("two")
    step = service.wait(frozen, "succeeded", 120)
    failure = service.failure(frozen)
    assert (step.attempt, step.failures, failure["code"]) == (2, 0, "worker_lost")
    assert failure["detail"].startswith("worker one/")
    for group in (runner, service.processes["one"].pid):
        os.killpg(group, signal.SIGCONT)
    until(lambda: service.logged("one", "step lost", step_id=frozen, attempt=1), 20)
    assert (service.step(frozen).state, count(service.engine, frozen)) == ("succeeded", (1, 3))

    os.killpg(service.processes["two"].pid, signal.SIGSTOP)  # so that the next step is for the first worker
    killed = service.upload(2, count=2000)
    runner = runner_of(service, "one", killed, 1)
    service.processes["one"].kill()
    until(lambda: gone(runner), 20)
    os.killpg(service.processes["two"].pid, signal.SIGCONT)
    step = service.wait(killed, "succeeded", 120)
    assert (step.attempt, step.failures, service.failure(killed)["code"]) == (2, 0, "worker_lost")
    assert count(service.engine, killed) == (1, 3)
