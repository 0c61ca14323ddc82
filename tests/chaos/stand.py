"""One installation under test: its processes, kept running as a service manager would, and what can be asked of it."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import psutil
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.database import readers
from jobs.models import Job, JobStep, Step, Worker
from tests.worker.service import Service
from worker.patience import AWAY

T = TypeVar("T")
WORKERS = ("one", "two")
PATIENCE = 150.0  # seconds in which anything must end


# A connection for each request, as an API that is killed needs; making a client each time would cost ten times what the request does.
HTTP = httpx.Client(timeout=30, limits=httpx.Limits(max_keepalive_connections=0))
STOP = threading.Event()  # set: whoever waits is to give up, and to leave nothing behind


class Late(Exception):
    """The job went by before the fault could strike."""


class Interrupted(Exception):
    """`STOP` was set."""


def pause(seconds: float) -> None:
    """Sleep. Raises `Interrupted`."""
    if STOP.wait(seconds):
        raise Interrupted


@dataclass
class Stand(Service):
    """A service whose processes are started again when they die, unless their names are in `held`."""

    url: str = ""
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    starts: int = 0
    _closing: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _keeper: threading.Thread | None = None

    def open(self, port: int) -> None:
        """Start API, maintenance loop and workers, and keep them running."""
        self.url = f"http://127.0.0.1:{port}"
        serve = ("api.app:create_app", "--factory", "--host", "127.0.0.1", "--port", str(port))
        self.commands = {"api": ("uvicorn", *serve, "--log-level", "warning", "--timeout-graceful-shutdown", "1")}
        self.commands |= {"maintenance": ("worker.maintenance",)} | {name: ("worker", "--name", name) for name in WORKERS}
        for name in self.commands:
            self._start(name)
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def _start(self, name: str) -> None:
        self.start(name, *self.commands[name])
        self.starts += 1

    def _keep(self) -> None:
        while not self._closing.wait(0.2):
            with self._lock:
                for name in self.commands:
                    if name not in self.held and self.processes[name].poll() is not None:
                        self._start(name)

    def kill(self, name: str, *, group: bool = True) -> None:
        """kill -9 of a process, or of all in its group."""
        process = self.processes[name]
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()

    @contextlib.contextmanager
    def down(self, *names: str) -> Any:
        """Processes killed in that order, and not started again before the end of the block."""
        with self._lock:
            self.held |= set(names)
        for name in names:
            self.kill(name)
        try:
            yield
        finally:
            with self._lock:
                self.held -= set(names)

    def close(self) -> list[str]:
        """Ask everything to end; what was still there after a while, and had to be killed."""
        self._closing.set()
        if self._keeper is not None:
            self._keeper.join()
        for name, process in self.processes.items():
            with contextlib.suppress(ProcessLookupError):
                if process.poll() is None:
                    os.kill(process.pid, signal.SIGTERM)
            if name == "api":  # so that nothing new comes in
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
        deadline = time.monotonic() + (0 if STOP.is_set() else 40)
        while (left := self.living()) and time.monotonic() < deadline:
            for process in self.processes.values():
                process.poll()
            time.sleep(0.1)
        said = [f"process {one.pid}: {' '.join(one.cmdline())[:120]}" for one in left if one.is_running()]
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.kill()
        for process in self.processes.values():
            process.wait()
        self.engine.dispose()
        return said

    def living(self) -> list[psutil.Process]:
        """Every process of this installation, whoever its parent is."""
        mine, found = str(self.settings.home), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("POTSTILL_HOME") == mine:
                    found.append(process)
        return found

    def read(self, work: Callable[[Session], T]) -> T:
        """What the database says, as soon as it can be reached."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with readers(self.engine)() as session:
                    return work(session)
            except AWAY:
                if time.monotonic() > deadline:
                    raise
                pause(0.1)

    def get(self, path: str, **query: Any) -> Any:
        return HTTP.get(self.url + path, params=query).raise_for_status().json()

    def ready(self) -> None:
        """Wait until the API serves."""
        wait_for(lambda: self._answers(), "the API to serve", every=0.1)

    def warm(self) -> None:
        """Wait until every worker has loaded the engine, so that a step's time is that of its work."""
        self.ready()
        ready = select(func.count()).select_from(Worker).where(Worker.device.is_not(None))
        wait_for(lambda: (self.read(lambda s: s.scalar(ready)) or 0) >= len(WORKERS), "the workers to be ready", every=0.1)

    def _answers(self) -> bool:
        try:
            return HTTP.get(f"{self.url}/healthz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def post(self, spec: dict[str, Any], key: str) -> str:
        """Post a distillation as a careful client does: again, with the same key, until it is accepted. The job's id."""

        def accepted() -> str | None:
            with contextlib.suppress(httpx.TransportError):
                answer = HTTP.post(f"{self.url}/distill", json=spec, headers={"Idempotency-Key": key})
                if answer.status_code < 500:
                    return str(answer.raise_for_status().json()["id"])
            return None

        return wait_for(accepted, "the job to be accepted")

    def state(self, job_id: str) -> str:
        return self.read(lambda s: s.get_one(Job, job_id).state)

    def ended(self, job_id: str) -> bool:
        return self.state(job_id) in ("succeeded", "failed", "cancelled")

    def count_jobs(self) -> int:
        return self.read(lambda s: s.scalar(select(func.count()).select_from(Job))) or 0

    def steps(self, job_id: str) -> dict[str, str]:
        """Ids of a job's steps by their names."""
        query = select(JobStep.name, JobStep.step_id).where(JobStep.job_id == job_id)
        return self.read(lambda s: dict(s.execute(query).all()))

    def running(self, job_id: str) -> dict[str, Step]:
        """The steps of a job that some worker runs now, by name."""
        steps = select(JobStep.name, Step).join(Step, Step.id == JobStep.step_id)
        query = steps.where(JobStep.job_id == job_id, Step.state == "running")
        return self.read(lambda s: dict(s.execute(query).all()))

    def took(self, job_id: str) -> dict[str, float]:
        """Seconds that the attempt took which finished a step of a job, by the step's name."""
        times = select(JobStep.name, Step.started_at, Step.finished_at).join(Step, Step.id == JobStep.step_id)
        rows = self.read(lambda s: s.execute(times.where(JobStep.job_id == job_id, Step.state == "succeeded")).all())
        return {name: (finished - started).total_seconds() for name, started, finished in rows if started and finished}

    def victim(self, job_id: str, name: str = "") -> tuple[Step, str, int]:
        """A running step (the one called `name` if it runs), its worker's name, and the pool child that supervises it. Raises `Late`."""

        def found() -> Step | None:
            running = self.running(job_id)
            if not running and self.ended(job_id):
                raise Late
            return running.get(name) or next(iter(running.values()), None)

        step = wait_for(found, "a step to run")
        worker, _, child = str(step.worker).rpartition("/")
        return step, worker, int(child)

    def runner(self, worker: str, step: Step) -> int:
        """The process that runs an attempt, once it has begun; 0 if the attempt is over."""

        def found() -> int | None:
            lines = self.logged(worker, "runner begins", step_id=step.id, attempt=step.attempt)
            now = self.step(step.id)
            return int(lines[0]["pid"]) if lines else 0 if (now.state, now.attempt) != ("running", step.attempt) else None

        return wait_for(found, "the runner to begin")

    def step(self, step_id: str) -> Step:
        return self.read(lambda s: s.get_one(Step, step_id))


def wait_for(condition: Callable[[], T | None], what: str, seconds: float = PATIENCE, every: float = 0.05) -> T:
    """The first value of `condition` that is neither None nor False. Raises `TimeoutError`, `Interrupted`."""
    deadline = time.monotonic() + seconds
    while (value := condition()) is None or value is False:
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        pause(every)
    return value
