"""How the service does, in numbers: what there is now of unfinished work, and what has happened since an event.

Both cost what is unfinished or new, however many jobs there ever were.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from jobs.bodies import QueueView
from jobs.database import now
from jobs.models import JOB_STATES, LIVE_STEP, Doorbell, Event, Job, Step
from jobs.workers import queues, workers

OPEN_JOB = tuple(state for state in JOB_STATES if state not in ("succeeded", "failed", "cancelled"))
MOST = 2000  # events in one look


@dataclass(frozen=True)
class Now:
    """What there is. jobs: by kind and state; steps: by queue, kind and state; workers: by state, device, engine and version.

    unsent: doorbells that no broker has taken yet, with the age of the oldest; overdue: leases that ran out and were not taken back,
    with how long ago the first did. Both stay near nothing while a maintenance loop does its work. Ages are seconds.
    """

    jobs: dict[tuple[str, str], int]
    steps: dict[tuple[str, str, str], int]
    queues: list[QueueView]
    workers: dict[tuple[str, str, str, str], int]
    unsent: int
    unsent_age: float
    overdue: int
    overdue_age: float


@dataclass(frozen=True)
class Happening:
    """An event that is counted. kind: of the step, or of the job for an event of a job; queue and code: empty where there is none.

    expired: an attempt failed because its lease ran out. seconds: how long a step ran or a job took, once it has ended; or how long a
    step that starts had waited; None where that is not known.
    """

    type: str
    kind: str
    queue: str
    code: str
    expired: bool
    seconds: float | None


@dataclass(frozen=True)
class Since:
    """last: the newest event that is counted in. more: there is more to read."""

    last: int
    happened: list[Happening]
    more: bool


def look(session: Session) -> Now:
    """Everything that there is now."""
    at = now(session)
    jobs = select(Job.kind, Job.state, func.count()).where(Job.state.in_(OPEN_JOB)).group_by(Job.kind, Job.state)
    steps = select(Step.queue, Step.kind, Step.state, func.count()).where(Step.state.in_(LIVE_STEP))
    unsent = session.execute(select(func.count(), func.min(Doorbell.created_at)).select_from(Doorbell)).one()
    late = select(func.count(), func.min(Step.lease_until)).where(Step.state == "running", Step.lease_until < at)
    overdue = session.execute(late).one()
    there: Counter[tuple[str, str, str, str]] = Counter(
        (one.state, one.device or "unknown", one.engine, one.version) for one in workers(session)
    )
    return Now(
        jobs={(kind, state): number for kind, state, number in session.execute(jobs)},
        steps={(row[0], row[1], row[2]): row[3] for row in session.execute(steps.group_by(Step.queue, Step.kind, Step.state))},
        queues=queues(session),
        workers=dict(there),
        unsent=unsent[0],
        unsent_age=_age(unsent[1], at),
        overdue=overdue[0],
        overdue_age=_age(overdue[1], at),
    )


def since(session: Session, after: int) -> Since:
    """What happened after event `after`, oldest first. Ids rise in the order of commits, so nothing is missed or told twice."""
    code, expired = Event.data["code"].as_string(), Event.data["expired"].as_boolean()
    query = (
        select(Event.id, Event.type, Event.at, code.label("code"), expired.label("expired"))
        .add_columns(Step.kind, Step.queue, Step.ready_at, Step.started_at, Step.finished_at)
        .add_columns(Job.kind.label("job_kind"), Job.created_at)
        .join(Step, Step.id == Event.step_id, isouter=True)
        .join(Job, Job.id == Event.job_id, isouter=True)
        .where(Event.id > after)
        .order_by(Event.id)
        .limit(MOST)
    )
    rows = session.execute(query).all()
    told = [
        Happening(row.type, row.kind or row.job_kind or "", row.queue or "", row.code or "", bool(row.expired), _seconds(row))
        for row in rows
    ]
    return Since(rows[-1].id if rows else after, told, len(rows) == MOST)


def _seconds(row: Row[Any]) -> float | None:
    begun, ended = {
        "step_started": (row.ready_at, row.at),
        "step_succeeded": (row.started_at, row.finished_at),
        "job_succeeded": (row.created_at, row.at),
    }.get(row.type, (None, None))
    if begun is None or ended is None or ended < begun:  # a later attempt has written over when this one became ready
        return None
    seconds: float = (ended - begun).total_seconds()
    return seconds


def _age(moment: datetime | None, at: datetime) -> float:
    return 0.0 if moment is None else max((at - moment).total_seconds(), 0.0)
