"""The numbers for Prometheus: of this process, of unfinished work, and of what has happened since this process began.

SQL is the truth about work, so the API can tell of it for all workers. What happened is counted from the table of events, which several
API processes each read: they tell the same numbers, so aggregate with `max`, not `sum`. A counter begins at 0 with its process.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.probe import Probe
from api.readiness import Readiness
from api.service import Service
from ddcore.errors import CODES
from ddcore.plan import STEP_VERSION, engine_digest
from jobs import database, gauges, quota
from jobs.gauges import Happening, Now
from jobs.models import QUEUES
from jobs.news import newest
from jobs.settings import Settings
from jobs.store import Store

FRESH = 5.0  # seconds for which what was counted is told again: scrapes cannot hurt the database
FRESH_SIZE = 60.0  # and the store's size, which is counted file by file
PIECES = 20  # looks at the events in one go; the next go reads on
JOB_KINDS = ("distill", "evaluate", "observe", "sweep")
SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside every counter, which nothing here asks for


class Measures:
    """engine: connections that no request uses; pool: those that requests use."""

    def __init__(self, registry: CollectorRegistry, readiness: Readiness, store: Store, engine: Engine, pool: Engine) -> None:
        self.readiness = readiness
        self._registry, self._store, self._pool = registry, store, pool
        self._read = database.readers(engine)
        self._numbers, self._room = Probe(self._count), Probe(store.free)
        self._now: Now | None = None
        self._used = 0
        self._counted_at = self._sized_at = -FRESH_SIZE
        self._last: int | None = None  # the newest event that is counted in
        self._counters = Counters(registry)
        ProcessCollector(registry=registry)
        build = Gauge("potstill_build_info", "What runs here", ["version", "engine"], registry=registry)
        build.labels(version("potstill"), engine_digest()).set(1)

    async def now(self) -> Now | None:
        """What there is, as of some seconds ago; None while the database does not tell."""
        try:
            return await self._numbers.ask()
        except Exception:  # the part "database" says what is wrong
            return None

    async def room(self) -> int | None:
        """Bytes that the store can take; None if nobody can tell."""
        now, free = await asyncio.gather(self.now(), self._room.ask(), return_exceptions=True)
        limits = [free] if isinstance(free, int) else []
        if self._store.quota and isinstance(now, Now):
            limits.append(self._store.quota - self._used)
        return min(limits, default=None)

    async def exposition(self) -> bytes:
        """Everything, in Prometheus' text format. What cannot be told now is left out."""
        parts, now, messages, free = await asyncio.gather(
            self.readiness.parts(), self.now(), self.readiness.messages(), self._room.ask(), return_exceptions=True
        )
        told = CollectorRegistry()
        if isinstance(parts, dict):
            _show(told, "up", "Whether a part can be used: 1 or 0", ("part",), {(one,): float(said == "ok") for one, said in parts.items()})
        if isinstance(now, Now):
            _show_work(told, now)
            _show(told, "store_used_bytes", "Sizes of all stored files that are needed", (), {(): self._used})
        if isinstance(messages, dict):
            _show(told, "broker_messages", "Doorbells that wait at Redis", ("queue",), {(name,): n for name, n in messages.items()})
        if isinstance(free, int):
            _show(told, "store_free_bytes", "What the store's disk can still take, beyond its reserve", (), {(): free})
        _show(told, "store_quota_bytes", "What all files may take; 0 for no limit", (), {(): self._store.quota})
        _show(told, "database_connections_in_use", "Connections that requests hold", (), {(): _held(self._pool)})
        return generate_latest(self._registry) + generate_latest(told)

    def _count(self) -> Now:
        with self._read() as session:
            self._catch_up(session)
            if self._now is None or time.monotonic() - self._counted_at > FRESH:
                self._now, self._counted_at = gauges.look(session), time.monotonic()
            if time.monotonic() - self._sized_at > FRESH_SIZE:
                self._used, self._sized_at = quota.used_bytes(session), time.monotonic()
            return self._now

    def _catch_up(self, session: Session) -> None:
        if self._last is None:
            self._last = newest(session)
        for _ in range(PIECES):
            seen = gauges.since(session, self._last)
            for one in seen.happened:
                self._counters.add(one)
            self._last = seen.last
            if not seen.more:
                break


@asynccontextmanager
async def watching(app: FastAPI, settings: Settings, registry: CollectorRegistry) -> AsyncIterator[None]:
    """Watch over a running service; what happens from now on is counted."""
    service: Service = app.state.service
    engine = database.connect_to_watch(settings)
    readiness = Readiness(settings, service.store, engine)
    app.state.measures = Measures(registry, readiness, service.store, engine, service.engine)
    await app.state.measures.now()
    try:
        yield
    finally:
        engine.dispose()


async def _measures(request: Request) -> Measures:
    measures: Measures = request.app.state.measures
    return measures


Watched = Annotated[Measures, Depends(_measures)]


class Counters:
    """What has happened. Each begins at 0 for every kind there is, so that the first of its kind shows as an increase."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"potstill_{name}_total", told, labels, registry=registry)

        def histogram(name: str, told: str, *labels: str) -> Histogram:
            return Histogram(f"potstill_{name}_seconds", told, labels, registry=registry, buckets=SECONDS)

        self.posted = counter("jobs_posted", "Jobs posted", "kind")
        self.ended = counter("jobs_ended", "Jobs ended", "kind", "state")
        self.took = histogram("job", "From a job's post to its success", "kind")
        self.started = counter("attempts_started", "Attempts at steps begun", "kind")
        self.failed = counter("attempts_failed", "Attempts failed, by error code; some were then retried", "kind", "code")
        self.retried = counter("attempts_retried", "Failed attempts after which the step was tried again", "kind")
        self.expired = counter("leases_expired", "Attempts given up because their worker fell silent")
        self.steps = counter("steps_ended", "Steps ended", "kind", "state")
        self.ran = histogram("step", "The successful attempt of a step", "kind")
        self.waited = histogram("step_wait", "From a step's being ready to its start", "queue")
        for kind in JOB_KINDS:
            self.posted.labels(kind), self.took.labels(kind)
            for state in ("succeeded", "failed", "cancelled"):
                self.ended.labels(kind, state)
        for kind in STEP_VERSION:
            self.started.labels(kind), self.retried.labels(kind), self.ran.labels(kind)
            for state in ("succeeded", "failed", "cancelled"):
                self.steps.labels(kind, state)
            for code in CODES:
                self.failed.labels(kind, code)
        for queue in QUEUES:
            self.waited.labels(queue)

    def add(self, one: Happening) -> None:
        """Count an event in."""
        match one.type.split("_", 1):
            case ["job", "queued"]:
                self.posted.labels(one.kind).inc()
            case ["job", "succeeded" | "failed" | "cancelled" as state]:
                self.ended.labels(one.kind, state).inc()
            case ["step", "started"]:
                self.started.labels(one.kind).inc()
            case ["step", "retried"]:
                self.retried.labels(one.kind).inc()
            case ["step", "succeeded" | "failed" | "cancelled" as state]:
                self.steps.labels(one.kind, state).inc()
        if one.code and one.type in ("step_retried", "step_failed"):
            self.failed.labels(one.kind, one.code).inc()
            self.expired.inc(int(one.expired))
        if one.seconds is not None:
            times = {"job_succeeded": self.took, "step_succeeded": self.ran}.get(one.type)
            (self.waited.labels(one.queue) if times is None else times.labels(one.kind)).observe(one.seconds)


def _show_work(told: CollectorRegistry, now: Now) -> None:
    _show(told, "jobs", "Jobs that have not ended", ("kind", "state"), now.jobs)
    _show(told, "steps", "Steps that have not ended", ("queue", "kind", "state"), now.steps)
    oldest = {(queue.name,): queue.oldest_seconds or 0.0 for queue in now.queues}
    _show(told, "queue_oldest_ready_seconds", "Age of the step that has been ready for longest", ("queue",), oldest)
    _show(told, "queue_ready_steps", "Steps that wait for a worker", ("queue",), {(queue.name,): queue.ready for queue in now.queues})
    listening = {(queue.name,): len(queue.workers) for queue in now.queues}
    _show(told, "queue_workers", "Workers that listen and can be counted on", ("queue",), listening)
    _show(told, "workers", "Workers, each of which runs one step at a time", ("state", "device", "engine", "version"), now.workers)
    _show(told, "doorbells_unsent", "Doorbells that Redis has not got yet", (), {(): now.unsent})
    _show(told, "doorbells_unsent_oldest_seconds", "Age of the oldest of them", (), {(): now.unsent_age})
    _show(told, "leases_overdue", "Leases that ran out and were not taken back yet", (), {(): now.overdue})
    _show(told, "leases_overdue_oldest_seconds", "How long ago the first of them ran out", (), {(): now.overdue_age})


def _show(told: CollectorRegistry, name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> None:
    """A gauge. values: by the tuple of its labels' values."""
    gauge = Gauge(f"potstill_{name}", text, labels, registry=told)
    for key, value in values.items():
        (gauge.labels(*key) if key else gauge).set(value)


def _held(engine: Engine) -> int:
    held: int = getattr(engine.pool, "checkedout")()  # noqa: B009 - of the pools that have it, as ours do
    return held
