"""Real processes on SQLite: redis-server, a Celery worker, the maintenance loop. The tests share one service, in order."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import redis
from sqlalchemy import select

from ddcore.plan import engine_digest
from jobs import cancel, workers
from jobs.bodies import WorkerView
from jobs.database import readers, sessions, transact
from jobs.models import Artifact, Job
from jobs.store import open_store
from tests.worker.service import RedisServer, Service, make_service, runner_of, until
from worker.app import TASK, make_app

TINY = {
    "backbone": {"name": "convnet", "width": 8, "depth": 2},
    "ssl": "simclr",
    "batch_size": 128,
    "projector_dim": 16,
    "warmup_epochs": 0,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, sqlite_file: Path, redis_server: RedisServer) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("service")
    shutil.copy(sqlite_file, home / "potstill.db")
    service = make_service(home, redis_server.url)
    service.start("maintenance", "worker.maintenance")
    service.worker("one")
    yield service
    service.stop()


def long_teacher(service: Service, seed: int) -> tuple[str, str]:
    """A job whose teacher would train for hours, and that teacher's step, once it trains."""
    job_id, steps = service.distill(num_images=4, method={"name": "random"}, teacher={**TINY, "epochs": 1_000_000}, seed=seed)
    until(lambda: service.step(steps["teacher"]).done, 90)
    return job_id, steps["teacher"]


def maps_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_step_runs_and_its_files_are_in_the_store(service: Service) -> None:
    step = service.wait(service.upload(1), "succeeded")
    with sessions(service.engine)() as session:
        files = {file.name: file for file in session.scalars(select(Artifact).where(Artifact.step_id == step.id))}
    assert {name: file.kind for name, file in files.items()} == {
        "dataset.safetensors": "dataset",
        "preview.png": "preview",
        "step.json": "manifest",
    }
    assert all(open_store(service.settings).verify(file.sha256) for file in files.values())
    assert (step.attempt, step.failures, step.summary["num_images"]) == (1, 0, 12)
    until(lambda: not (service.settings.scratch / "steps" / step.key).exists(), 5)


def test_only_the_template_has_loaded_torch(service: Service) -> None:
    (child,) = children(service.processes["one"].pid)
    (template,) = children(child)
    assert [maps_torch(pid) for pid in (service.processes["one"].pid, child, template)] == [False, False, True]


def test_a_worker_is_listed_with_its_device_and_its_version(service: Service) -> None:
    def listed() -> list[WorkerView]:
        with readers(service.engine)() as session:
            return workers.workers(session)

    (one,) = until(lambda: [worker for worker in listed() if worker.device], 20)
    (child,) = children(service.processes["one"].pid)
    assert (one.name, one.pid, one.host, one.queues) == (f"one/{child}", child, socket.gethostname(), ["gpu", "cpu", "io"])
    assert (one.state, one.engine, one.version) == ("idle", engine_digest(), version("potstill"))
    assert one.memory is not None
    assert one.memory > 2**28
    until(lambda: listed()[0].last_seen > one.last_seen, 10)


def test_a_small_job_runs_to_its_end(service: Service) -> None:
    job_id, steps = service.distill(num_images=4, method={"name": "random"}, teacher={**TINY, "epochs": 1})
    for name in ("distill", "export", "figures"):
        service.wait(steps[name], "succeeded", 90)
    with sessions(service.engine)() as session:
        assert session.get_one(Job, job_id).state == "succeeded"
    assert {service.step(step).attempt for step in steps.values()} == {1}
    for step_id in set(steps.values()):  # what leads from a job to its steps' attempts, in both processes
        for message in ("step claimed", "runner begins", "runner ends", "step succeeded"):
            (line,) = until(lambda message=message, step_id=step_id: service.logged("one", message, step_id=step_id, attempt=1), 10)
            assert job_id in line["job_ids"], line
            assert line["kind"] == service.step(step_id).kind
        assert service.logged("one", "step claimed", step_id=step_id)[0]["queue"] == service.step(step_id).queue
    plain = [line for line in service.log("one").read_text().splitlines() if not line.startswith("{")]
    assert plain == [], "lines that no program can read"


def test_doubled_and_late_doorbells_run_nothing_twice(service: Service) -> None:
    done, app = service.upload(2), make_app(service.settings.redis_url)
    for _ in range(5):
        app.send_task(TASK, args=[done], queue="io")
    service.wait(done, "succeeded")
    app.send_task(TASK, args=[done], queue="gpu")
    app.send_task(TASK, args=["step_unknown"], queue="io")
    service.wait(service.upload(3), "succeeded")  # what was sent before it has been read
    assert (service.step(done).attempt, service.step(done).state) == (1, "succeeded")


def test_a_killed_runner_is_counted_and_its_step_run_again(service: Service) -> None:
    step_id = service.upload(4, count=2000)
    os.kill(runner_of(service, "one", step_id, 1), signal.SIGKILL)
    step = service.wait(step_id, "succeeded")
    assert (step.attempt, step.failures) == (2, 1)
    failure = service.failure(step_id)
    assert (failure["code"], failure["detail"]) == ("worker_lost", "the runner was killed by SIGKILL")


def test_a_cancel_reaches_the_inner_loop_within_five_seconds(service: Service) -> None:
    job_id, step_id = long_teacher(service, seed=5)
    began = time.monotonic()
    transact(sessions(service.engine), lambda s: cancel.cancel(s, job_id))
    step = service.wait(step_id, "cancelled", 5)
    assert time.monotonic() - began < 5
    assert step.failures == 0
    assert [line["code"] for line in service.logged("one", "runner ends", step_id=step_id)] == ["STOPPED"]  # not killed
    with sessions(service.engine)() as session:
        assert session.get_one(Job, job_id).state == "cancelled"


def test_losing_all_of_redis_loses_no_step(service: Service, redis_server: RedisServer) -> None:
    job_id, _ = long_teacher(service, seed=6)  # the worker is busy, so the next doorbell waits
    client = redis.from_url(service.settings.redis_url)
    waiting = service.upload(6)
    until(lambda: client.llen("io"), 10)
    client.flushall()
    redis_server.restart()
    later = service.upload(7)
    transact(sessions(service.engine), lambda s: cancel.cancel(s, job_id))
    assert [service.wait(step, "succeeded").attempt for step in (waiting, later)] == [1, 1]


def test_a_drained_worker_hands_its_step_back_with_a_checkpoint(service: Service) -> None:
    _, step_id = long_teacher(service, seed=9)
    service.processes["one"].terminate()
    assert service.processes["one"].wait(15) == 0
    step = service.step(step_id)
    assert (step.state, step.failures, step.attempt) == ("ready", 0, 1)
    assert list((service.settings.scratch / "steps" / step.key / "work").iterdir())
    with readers(service.engine)() as session:
        assert workers.workers(session) == [], "it has said goodbye"


def test_maintenance_stops_when_told(service: Service) -> None:
    service.processes["maintenance"].terminate()
    assert service.processes["maintenance"].wait(5) == 0
    assert service.logged("maintenance", "maintenance ends")
