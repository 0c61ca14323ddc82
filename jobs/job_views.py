"""What there is to know of jobs and their steps: places in the queue, progress, words, history."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import and_, bindparam, or_, select
from sqlalchemy.orm import Session

from jobs.bodies import Error, EventView, JobView, Page, Progress, Queue, StepView
from jobs.database import now
from jobs.errors import NotFound
from jobs.eta import eta, seconds_left
from jobs.models import LIVE_JOB, Event, Job, JobLabel, JobStep, Result, Step, StepInput
from jobs.pages import page
from jobs.phases import phase
from jobs.place import rank, steps_ahead
from jobs.recent import FRESH, Recent
from jobs.workers import Crew, crews, other_engine

# A job's own row, its result and labels come with its first step, so that they are not sent again with each. Put together once: that
# takes as long as to ask.
_SOME = (
    select(JobStep, Step, Job, Result, JobLabel.label)
    .join(Step, Step.id == JobStep.step_id)
    .outerjoin(Job, and_(Job.id == JobStep.job_id, JobStep.position == 0))
    .outerjoin(Result, Result.job_id == Job.id)
    .outerjoin(JobLabel, JobLabel.job_id == Job.id)
    .where(JobStep.job_id.in_(bindparam("job_ids", expanding=True)))
    .order_by(JobStep.job_id, JobStep.position, JobLabel.label)
)


def job(session: Session, job_id: str, recent: Recent = FRESH) -> JobView:
    """One job, with its place in the queue. Raises `NotFound`. recent: as in `some`."""
    found = some(session, [job_id], recent)
    if not found:
        raise NotFound("job", job_id)
    return found[job_id]


def require(session: Session, job_id: str) -> None:
    """Raises `NotFound` if there is no such job."""
    if session.scalar(select(Job.id).where(Job.id == job_id)) is None:
        raise NotFound("job", job_id)


def some(session: Session, job_ids: Sequence[str], recent: Recent | None) -> dict[str, JobView]:
    """Those of the jobs that there are, by id, each with its place in the queue, or without it where `recent` is None.

    All that is told of the jobs themselves is as of one moment, whatever the session's isolation, and costs one statement however many
    they are; of those with steps that wait for others, one more. recent: what it may remember of the service as a whole (who works,
    what time it is there, how long steps took), for those who ask for many jobs.
    """
    found: dict[str, _Found] = {}
    for link, step, row, result, label in session.execute(_SOME, {"job_ids": job_ids}):
        one = found.setdefault(link.job_id, _Found(row, result))
        one.labels += [] if label is None else [label]
        if not one.links or one.links[-1][0] is not link:
            one.links.append((link, step))
    at = datetime.now(UTC) + (recent or FRESH).get(session, "ahead", _ahead)
    needs = _needs(session, list(found.values())) if recent else {}
    return {job_id: _job_view(session, one, at, recent, needs.get(job_id, {})) for job_id, one in found.items()}


def jobs(
    session: Session,
    *,
    kind: str | None = None,
    state: str | None = None,
    label: str | None = None,
    owner: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Page[JobView]:
    """Jobs, newest first. Raises `BadCursor`."""
    query = select(Job)
    if kind is not None:
        query = query.where(Job.kind == kind)
    if state is not None:
        query = query.where(Job.state == state)
    if owner is not None:
        query = query.where(Job.owner == owner)
    if label is not None:
        query = query.join(JobLabel, JobLabel.job_id == Job.id).where(JobLabel.label == label)
    rows, after = page(session, query, Job.id, limit, cursor, by=None if label is None else JobLabel.job_id)
    found = some(session, [row.id for row in rows], None)
    return Page(data=[found[row.id] for row in rows], has_more=after is not None, next_cursor=after)


@dataclass
class _Found:
    """What the database has of a job; links: its steps, in the order of its plan."""

    row: Job
    result: Result | None
    labels: list[str] = field(default_factory=list)
    links: list[tuple[JobStep, Step]] = field(default_factory=list)


def _ahead(session: Session) -> timedelta:
    """How much the database's clock is ahead of this machine's."""
    return now(session) - datetime.now(UTC)


def _there(session: Session) -> list[Crew]:
    """Who can be counted on now."""
    return crews(session, now(session))


def _needs(session: Session, found: Sequence[_Found]) -> dict[str, dict[str, list[str]]]:
    """Of each live job in which steps wait for others: which steps each step needs."""
    those = [one.row.id for one in found if one.row.state in LIVE_JOB and any(step.state == "blocked" for _, step in one.links)]
    needs: dict[str, dict[str, list[str]]] = {job_id: defaultdict(list) for job_id in those}
    if those:
        edges = select(JobStep.job_id, StepInput.step_id, StepInput.needs_id).join(JobStep, JobStep.step_id == StepInput.step_id)
        for job_id, step_id, needed in session.execute(edges.where(JobStep.job_id.in_(those))):
            needs[job_id][step_id].append(needed)
    return needs


def _job_view(session: Session, found: _Found, at: datetime, recent: Recent | None, needs: Mapping[str, Sequence[str]]) -> JobView:
    """recent: None for what is quickly told, without place and time to go."""
    row, result, links = found.row, found.result, found.links
    distinct = list({step.id: step for _, step in links}.values())
    live = recent if row.state in LIVE_JOB else None
    there = live.get(session, "crews", _there) if live else []
    waits = _place(session, distinct, live) if live else None
    queue, engine = (waits[1], other_engine(there, waits[0])) if waits else (None, None)
    made: dict[str, Any] = {result.kind: result.id} if result else {}
    return JobView(
        id=row.id,
        kind=row.kind,
        state=row.state,
        phase=phase(row, distinct, queue.ahead if queue else None, engine),
        spec=row.spec,
        labels=found.labels,
        pinned=row.pinned,
        priority=row.priority,
        owner=row.owner,
        parent_id=row.parent_id,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        progress=_job_progress(row, links, at),
        queue=queue,
        eta=eta(session, distinct, needs, there, waits, at, live) if live else None,
        steps=[_step_view(link, step, at) for link, step in links],
        results={**made, "summaries": {link.name: step.summary for link, step in links if step.summary is not None}},
        error=_error(row),
    )


def _place(session: Session, steps: Sequence[Step], recent: Recent) -> tuple[Step, Queue] | None:
    """The step of a job that is claimed next, and its place; None if none waits, or one runs."""
    waiting = sorted((step for step in steps if step.state == "ready" and step.ready_at is not None), key=rank, reverse=True)
    if not waiting or any(step.state == "running" for step in steps):
        return None
    firsts = {(step.queue, step.engine, step.owner): step for step in waiting}  # mostly one
    ahead, first = min(((steps_ahead(session, step, recent), step) for step in firsts.values()), key=lambda one: one[0])
    return first, Queue(position=ahead + 1, ahead=ahead)


def _job_progress(row: Job, links: list[tuple[JobStep, Step]], at: datetime) -> Progress:
    steps = {step.id: step for link, step in links if not link.cached} or {step.id: step for _, step in links}
    done, etas = 0.0, []
    for step in steps.values():
        if step.state == "succeeded":
            done += 1
        elif step.state == "running" and step.total:
            done += min((step.done or 0) / step.total, 1.0)
            etas.append(seconds_left(step, at))
    known = [eta for eta in etas if eta is not None]
    live = row.state in ("queued", "running")
    return Progress(done=round(done, 3), total=len(steps), unit="steps", eta_seconds=max(known) if live and known else None)


def _step_view(link: JobStep, step: Step, at: datetime) -> StepView:
    progress = None
    if step.done is not None:
        progress = Progress(done=step.done, total=step.total, unit=step.unit or "", eta_seconds=seconds_left(step, at))
    return StepView(
        id=step.id,
        name=link.name,
        kind=step.kind,
        state=step.state,
        attempt=step.attempt,
        cached=link.cached,
        started_at=step.started_at,
        finished_at=step.finished_at,
        progress=progress,
        note=step.note,
        error=_error(step),
    )


def _error(row: Job | Step) -> Error | None:
    if row.error_code is None:
        return None
    return Error(code=row.error_code, detail=row.error_detail or "", hint=row.error_hint or "")


def events(session: Session, job: JobView, after: int = 0, limit: int = 100) -> list[EventView]:
    """What happened to a job and to its steps (but not to those that were done before it), after event `after`, oldest first."""
    names = {step.id: step.name for step in reversed(job.steps) if not step.cached}
    query = select(Event).where(or_(Event.job_id == job.id, Event.step_id.in_(names)), Event.id > after).order_by(Event.id).limit(limit)
    return [
        EventView(id=row.id, type=row.type, step=names[row.step_id] if row.step_id else None, data=row.data, at=row.at)
        for row in session.scalars(query)
    ]
