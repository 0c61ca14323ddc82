"""The faults, by name. Each strikes at a moment that the round has chosen, and is over when its function returns."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil
import redis

from jobs.models import QUEUES, Step
from tests.chaos.servers import Manner, PostgreSQL, Proxy
from tests.chaos.stand import HTTP, Late, Stand, pause, wait_for
from tests.worker.service import RedisServer
from worker.app import TASK, make_app

BOTH = ("postgresql", "sqlite")
# Seconds in which a frozen step must be taken over. One frozen while it holds SQLite's write lock is not, before it goes on; PostgreSQL
# ends such a transaction.
_TAKEN_OVER, _LOCKED = 60.0, 20.0


@dataclass
class Scene:
    """What a fault may act on. step: the name of the step that was to be struck; said: what happened, for the round's line."""

    stand: Stand
    redis: RedisServer
    random: random.Random
    spec: dict[str, Any]
    postgresql: PostgreSQL | None = None
    proxy: Proxy | None = None
    job_id: str = ""
    step: str = ""
    said: list[str] = field(default_factory=list)

    def wait(self, longest: float) -> None:
        pause(self.random.uniform(0.0, longest))


@dataclass(frozen=True)
class Fault:
    """strike: at a moment of the running job; or instead of a plain post (`posts`), and then it returns with the job posted.

    store: what kind of artifact store the installation needs for it. fills: the folder that can be made full. costs: how many failures of
    its steps may count against them.
    """

    strike: Callable[[Scene], None]
    databases: tuple[str, ...] = BOTH
    store: Literal["folder", "server"] = "folder"
    fills: Literal["", "store", "scratch"] = ""
    posts: bool = False
    costs: int = 0


def kill_runner(scene: Scene) -> None:
    while True:
        step, worker, _ = scene.stand.victim(scene.job_id, scene.step)
        if pid := scene.stand.runner(worker, step):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            scene.said.append(step.kind)
            return


def kill_child(scene: Scene) -> None:
    step, _, child = scene.stand.victim(scene.job_id, scene.step)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    scene.said.append(step.kind)


def kill_worker(scene: Scene) -> None:
    step, worker, _ = scene.stand.victim(scene.job_id, scene.step)
    scene.stand.kill(worker)
    scene.said.append(step.kind)


def kill_main(scene: Scene) -> None:
    """The process that Celery began with, and not its children."""
    step, worker, _ = scene.stand.victim(scene.job_id, scene.step)
    scene.stand.kill(worker, group=False)
    scene.said.append(step.kind)


def terminate_worker(scene: Scene) -> None:
    step, worker, _ = scene.stand.victim(scene.job_id, scene.step)
    process = scene.stand.processes[worker]
    process.terminate()
    process.wait(60)
    scene.said.append(step.kind)


def freeze_worker(scene: Scene) -> None:
    """Stop a worker, with its runner or without, until another has taken its step over; then let it go on.

    Raises `TimeoutError` if on PostgreSQL nobody takes the step over, and `Late` if it had ended before its runner was frozen.
    """
    stand = scene.stand
    step, worker, child = stand.victim(scene.job_id, scene.step)
    main, whole = psutil.Process(stand.processes[worker].pid), scene.random.random() < 0.7
    frozen = [main, *main.children(recursive=True)] if whole else [main, psutil.Process(child)]
    try:
        for process in frozen:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        taken = taken_over(scene, step, whole)
        if taken and scene.random.random() < 0.5:  # thawed beside its successor, or behind it
            wait_for(lambda: stand.step(step.id).state == "succeeded", "another worker to finish the step")
    finally:
        for process in frozen:
            with contextlib.suppress(psutil.Error):
                process.resume()
    scene.said.append(f"{step.kind}, {'all of it' if whole else 'not the runner'}, {'taken over' if taken else 'not taken over'}")


def taken_over(scene: Scene, step: Step, whole: bool) -> bool:
    """Whether another has claimed a step whose worker is frozen, or its runner has ended it. whole: the runner is frozen, too.

    Nobody need do so on SQLite. Raises `TimeoutError`, `Late`.
    """
    deadline = time.monotonic() + (_LOCKED if scene.postgresql is None else _TAKEN_OVER)
    while time.monotonic() < deadline:
        now = scene.stand.step(step.id)
        if now.attempt > step.attempt:
            return True
        if now.state not in ("running", "ready"):
            if whole:
                raise Late
            return True
        pause(0.05)
    if scene.postgresql is not None:
        raise TimeoutError(f"nobody took over {step.kind} in {_TAKEN_OVER:.0f} s")
    return False


def restart_redis(scene: Scene) -> None:
    scene.redis.restart()


def stop_redis(scene: Scene) -> None:
    scene.redis.stop()
    pause(30)
    scene.redis.start()


def flush_redis(scene: Scene) -> None:
    redis.from_url(scene.redis.url).flushall()


def _restart_postgresql(scene: Scene, mode: str) -> None:
    assert scene.postgresql is not None
    scene.postgresql.stop(mode)
    try:
        scene.wait(8.0)  # up to twice a lease
    finally:
        scene.postgresql.start()


def restart_postgresql(scene: Scene) -> None:
    _restart_postgresql(scene, "fast")


def crash_postgresql(scene: Scene) -> None:
    _restart_postgresql(scene, "immediate")


def kill_api(scene: Scene) -> None:
    """Kill the API around its commit, with the maintenance loop down, so that no doorbell is sent; then ask again with the same key."""
    stand, key = scene.stand, f"key-{scene.random.random()}"
    stand.ready()
    with stand.down("maintenance"):
        asking = threading.Thread(target=_ask, args=(stand, scene.spec, key))
        asking.start()
        if scene.random.random() < 0.5:
            wait_for(lambda: stand.count_jobs() or not asking.is_alive(), "the job to be committed", every=0.001)
        else:
            scene.wait(0.1)
        with stand.down("api"):
            scene.said.append("after its commit" if stand.count_jobs() else "before its commit")
            asking.join()
    scene.job_id = stand.post(scene.spec, key)


def _ask(stand: Stand, spec: dict[str, Any], key: str) -> None:
    with contextlib.suppress(httpx.TransportError):
        HTTP.post(f"{stand.url}/distill", json=spec, headers={"Idempotency-Key": key})


def kill_maintenance(scene: Scene) -> None:
    with scene.stand.down("maintenance"):
        scene.wait(6.0)


def double_messages(scene: Scene) -> None:
    """Ring for every step, ended, running or blocked, and for one that nobody knows, again and again until the job ends, and after it."""
    app, late = make_app(scene.redis.url), 0
    names = [*scene.stand.steps(scene.job_id).values(), "step_unknown"]
    sent = 0
    while late < 50:
        app.send_task(TASK, args=[scene.random.choice(names)], queue=scene.random.choice(QUEUES))
        sent += 1
        late += scene.stand.ended(scene.job_id) if sent % 5 == 0 or late else 0
        scene.wait(0.05)
    client = redis.from_url(scene.redis.url)
    wait_for(lambda: not any(client.llen(name) for name in QUEUES), "the messages to be read")
    scene.said.append(f"{sent} messages")


def fill_disk(scene: Scene) -> None:
    """A folder takes nothing more, until some file was refused and a little longer."""
    flag = full_flag(scene.stand.settings.home)
    flag.touch()
    try:
        hit = flag.with_name(f"{flag.name}.hit")
        if not wait_for(lambda: "hit" if hit.exists() else "" if scene.stand.ended(scene.job_id) else None, "a file to be refused"):
            raise Late
        scene.wait(4.0)
    finally:
        flag.unlink()


def disturb_store(scene: Scene) -> None:
    """The server of the artifact store refuses, hangs up or breaks off, in turn, until some requests were answered so."""
    proxy = scene.proxy
    assert proxy is not None
    manners: list[Manner] = ["503", "reset", "cut"]
    scene.random.shuffle(manners)
    try:
        for manner in manners:
            proxy.manner, before = manner, proxy.disturbed
            deadline = time.monotonic() + scene.random.uniform(1.0, 5.0)
            while time.monotonic() < deadline or (manner == manners[0] and proxy.disturbed == before):
                if scene.stand.ended(scene.job_id) and not proxy.disturbed:
                    raise Late
                pause(0.05)
    finally:
        proxy.manner = "well"
    scene.said.append(f"{proxy.disturbed} bad answers")


def cancel_and_retry(scene: Scene) -> None:
    """Cancel the job, and half of the time kill who would stop its step; then post it again from where it was."""
    stand = scene.stand
    step, _, child = stand.victim(scene.job_id, scene.step)
    answer = HTTP.post(f"{stand.url}/jobs/{scene.job_id}/cancel")
    if answer.status_code == 409:
        raise Late
    answer.raise_for_status()
    if scene.random.random() < 0.5:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        scene.said.append(f"{step.kind}, its supervisor killed")
    wait_for(lambda: stand.state(scene.job_id) == "cancelled", "the job to be cancelled")
    answer = HTTP.post(f"{stand.url}/jobs/{scene.job_id}/retry")
    scene.job_id = answer.raise_for_status().json()["id"]


def full_flag(home: Path) -> Path:
    """While this file exists, the folder of an installation that its fault fills is full."""
    return home / "full"


FAULTS = {
    "runner-killed": Fault(kill_runner, costs=1),
    "child-killed": Fault(kill_child),
    "worker-killed": Fault(kill_worker),
    "main-killed": Fault(kill_main),
    "worker-terminated": Fault(terminate_worker),
    "worker-frozen": Fault(freeze_worker),
    "redis-restarted": Fault(restart_redis),
    "redis-stopped": Fault(stop_redis),
    "redis-flushed": Fault(flush_redis),
    "postgresql-restarted": Fault(restart_postgresql, databases=("postgresql",)),
    "postgresql-crashed": Fault(crash_postgresql, databases=("postgresql",)),
    "api-killed": Fault(kill_api, posts=True),
    "maintenance-killed": Fault(kill_maintenance),
    "messages-doubled": Fault(double_messages),
    "disk-full": Fault(fill_disk, fills="store"),
    "scratch-full": Fault(fill_disk, fills="scratch"),
    "store-errors": Fault(disturb_store, store="server"),
    "job-cancelled": Fault(cancel_and_retry),
}
