"""Who is there to run steps, and what waits for whom."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import String, case, cast, delete, func, select, text, update
from sqlalchemy.orm import Session

from jobs.bodies import QueueView, WorkerView
from jobs.database import now
from jobs.models import QUEUES, Step, Worker
from jobs.outbox import ring_for

FORGET_SECONDS = 24 * 3600.0  # a worker that was not heard of for so long is no longer listed


@dataclass(frozen=True)
class Presence:
    """What a worker says of itself. version: of the package; engine: `ddcore.plan.engine_digest()` there."""

    name: str
    host: str
    pid: int
    queues: tuple[str, ...]
    engine: str
    version: str


def report(session: Session, worker: Presence, *, alive_seconds: float, first: bool = False) -> None:
    """Say that a worker is there, and may be counted on for `alive_seconds`.

    first: of this process; what is known under its name is of one that was called the same and did not say goodbye.
    The first of its engine on a queue has the steps that wait there rung again: workers of other engines may have used up their doorbells.
    """
    at = now(session)
    seen = {"last_seen": at, "alive_until": at + timedelta(seconds=alive_seconds)}
    own = {"host": worker.host, "pid": worker.pid, "queues": list(worker.queues), "engine": worker.engine, "version": worker.version}
    begun = {"started_at": at, **own}
    if not first and _note(session, worker.name, **seen):
        return
    if fresh := [name for name in worker.queues if worker.engine not in _listening(session, name, at)]:
        ring_for(session, worker.engine, fresh)
    if not _note(session, worker.name, **begun, **seen):
        session.add(Worker(name=worker.name, **begun, **seen))


def set_device(session: Session, name: str, device: str, memory: int | None) -> bool:
    """Note what a worker computes on, and its memory in bytes; False if the worker has not reported yet."""
    return _note(session, name, device=device, memory=memory)


def _note(session: Session, name: str, **values: Any) -> bool:
    """Whether there is such a worker."""
    change = update(Worker).where(Worker.name == name).values(**values).returning(Worker.name)
    return session.scalar(change.execution_options(synchronize_session=False)) is not None


def leave(session: Session, name: str) -> None:
    """The worker has ended, and is not missed."""
    session.execute(delete(Worker).where(Worker.name == name))


def forget(session: Session, after: float = FORGET_SECONDS) -> int:
    """Remove workers that were not heard of for `after` seconds; returns how many."""
    gone = delete(Worker).where(Worker.last_seen < now(session) - timedelta(seconds=after)).returning(Worker.name)
    return len(session.scalars(gone.execution_options(synchronize_session=False)).all())


def workers(session: Session) -> list[WorkerView]:
    """Every worker that has not ended in good order, by name; one that died is listed, as `lost`, for a day."""
    at = now(session)
    running = dict(session.execute(select(Step.worker, Step.id).where(Step.state == "running")).all())
    return [_view(row, running.get(row.name), at) for row in session.scalars(select(Worker).order_by(Worker.name))]


def _view(row: Worker, step: str | None, at: datetime) -> WorkerView:
    return WorkerView(
        name=row.name,
        state="lost" if row.alive_until < at else "busy" if step else "idle",
        host=row.host,
        pid=row.pid,
        queues=row.queues,
        device=row.device,
        memory=row.memory,
        engine=row.engine,
        version=row.version,
        started_at=row.started_at,
        last_seen=row.last_seen,
        step=step,
    )


def queues(session: Session) -> list[QueueView]:
    """Every queue: what waits, what runs, and who listens."""
    at = now(session)
    counts: Counter[tuple[str, str]] = Counter()
    oldest: dict[str, datetime] = {}
    waits: dict[str, set[str]] = defaultdict(set)
    grouped = select(Step.queue, Step.state, Step.engine, func.count().label("number"), func.min(Step.ready_at).label("oldest"))
    grouped = grouped.where(Step.state.in_(("ready", "running"))).group_by(Step.queue, Step.state, Step.engine)
    for queue, state, engine, number, since in session.execute(grouped).all():
        counts[queue, state] += number
        if state == "ready" and since is not None:
            oldest[queue] = min(since, oldest.get(queue, since))
            waits[queue].add(engine)
    there = alive(session, at)
    views = []
    for name in QUEUES:
        listening = [row for row in there if name in row.queues]
        unserved = sorted(waits[name] - {row.engine for row in listening}) if listening else []
        age = max((at - oldest[name]).total_seconds(), 0.0) if name in oldest else None
        fields = {"ready": counts[name, "ready"], "running": counts[name, "running"], "oldest_seconds": age, "other_engines": unserved}
        views.append(QueueView(name=name, workers=[row.name for row in listening], **fields))
    return views


def alive(session: Session, at: datetime) -> Sequence[Worker]:
    """The workers that can be counted on, by name."""
    return session.scalars(select(Worker).where(Worker.alive_until >= at).order_by(Worker.name)).all()


def waits_for_another(session: Session, queue: str, engine: str) -> str | None:
    """A step that is ready on a queue, and that others listen for who are not of `engine`; None if there is none."""
    others = _listening(session, queue, now(session)) - {engine}
    if not others:
        return None
    return session.scalar(select(Step.id).where(Step.state == "ready", Step.queue == queue, Step.engine.in_(others)).limit(1))


def _listening(session: Session, queue: str, at: datetime) -> set[str]:
    """The engines of the workers that listen on a queue."""
    there = session.execute(select(Worker.engine, cast(Worker.queues, String)).where(Worker.alive_until >= at).distinct())
    return {engine for engine, queues in there if queue in json.loads(queues)}


@dataclass(frozen=True)
class Crew:
    """Workers of one engine that listen on the same queues: how many can be counted on, and how many of them run nothing."""

    engine: str
    queues: tuple[str, ...]
    workers: int
    idle: int


def crews(session: Session, at: datetime) -> list[Crew]:
    """The workers that can be counted on, by what they may run: few rows, of however many workers."""
    queues, busy = cast(Worker.queues, String), select(Step.worker).where(text("steps.state = 'running'"), Step.worker.is_not(None))
    idle = func.sum(case((Worker.name.in_(busy), 0), else_=1))
    query = select(Worker.engine, queues, func.count(), idle).where(Worker.alive_until >= at).group_by(Worker.engine, queues)
    return [Crew(engine, tuple(json.loads(names)), workers, int(free)) for engine, names, workers, free in session.execute(query)]


def other_engine(there: Sequence[Crew], step: Step) -> str | None:
    """The engine that a ready step waits for while all who listen on its queue run others; None if one may come, or nobody listens."""
    engines = {crew.engine for crew in there if step.queue in crew.queues}
    return step.engine if engines and step.engine not in engines else None
