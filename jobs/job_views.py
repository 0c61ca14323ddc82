"""What there is to know of jobs and their steps: places in the queue, progress, words, history."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from jobs.bodies import Error, EventView, JobView, Page, Progress, Queue, StepView
from jobs.database import now
from jobs.errors import NotFound
from jobs.eta import eta, seconds_left
from jobs.models import LIVE_JOB, Event, Job, JobLabel, JobStep, Result, Step
from jobs.pages import page
from jobs.phases import phase
from jobs.place import rank, steps_ahead
from jobs.recent import FRESH, Recent
from jobs.workers import crews, other_engine


def job(session: Session, job_id: str, recent: Recent = FRESH) -> JobView:
    """One job, with its place in the queue. Raises `NotFound`.

    recent: what it may remember of the service as a whole (who works, what time it is there, how long steps took), for those who ask
    for many jobs. What is told of the job itself is always as of now.
    """
    query = select(Job, Result, JobLabel.label).outerjoin(Result, Result.job_id == Job.id).outerjoin(JobLabel, JobLabel.job_id == Job.id)
    found = session.execute(query.where(Job.id == job_id).order_by(JobLabel.label)).all()
    if not found:
        raise NotFound("job", job_id)
    row, result, _ = found[0]
    labels = [label for _, _, label in found if label is not None]
    return _job_view(session, row, _steps(session, [job_id])[job_id], labels, result, _time(session, recent), recent)


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
    return Page(data=_job_views(session, rows), has_more=after is not None, next_cursor=after)


def _job_views(session: Session, rows: Sequence[Job]) -> list[JobView]:
    ids = [row.id for row in rows]
    links = _steps(session, ids)
    labels: dict[str, list[str]] = defaultdict(list)
    for one in session.scalars(select(JobLabel).where(JobLabel.job_id.in_(ids)).order_by(JobLabel.label)):
        labels[one.job_id].append(one.label)
    results = {one.job_id: one for one in session.scalars(select(Result).where(Result.job_id.in_(ids)))}
    at = now(session)
    return [_job_view(session, row, links[row.id], labels[row.id], results.get(row.id), at, None) for row in rows]


def _steps(session: Session, job_ids: Sequence[str]) -> dict[str, list[tuple[JobStep, Step]]]:
    """The steps of the jobs, in the order of their plans."""
    links: dict[str, list[tuple[JobStep, Step]]] = defaultdict(list)
    query = select(JobStep, Step).join(Step, Step.id == JobStep.step_id).where(JobStep.job_id.in_(job_ids))
    for link, step in session.execute(query.order_by(JobStep.job_id, JobStep.position)):
        links[link.job_id].append((link, step))
    return links


def _time(session: Session, recent: Recent) -> datetime:
    """The time by the database's clock."""
    return datetime.now(UTC) + recent.get("ahead", lambda: now(session) - datetime.now(UTC))


def _job_view(
    session: Session,
    row: Job,
    links: list[tuple[JobStep, Step]],
    labels: list[str],
    result: Result | None,
    at: datetime,
    recent: Recent | None,
) -> JobView:
    """recent: None for what is quickly told, without place and time to go."""
    distinct = list({step.id: step for _, step in links}.values())
    live = recent if row.state in LIVE_JOB else None
    there = live.get("crews", lambda: crews(session, at)) if live else []
    waits = _place(session, distinct, live) if live else None
    queue, engine = (waits[1], other_engine(there, waits[0])) if waits else (None, None)
    made: dict[str, Any] = {result.kind: result.id} if result else {}
    return JobView(
        id=row.id,
        kind=row.kind,
        state=row.state,
        phase=phase(row, distinct, queue.ahead if queue else None, engine),
        spec=row.spec,
        labels=labels,
        pinned=row.pinned,
        priority=row.priority,
        owner=row.owner,
        parent_id=row.parent_id,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        progress=_job_progress(row, links, at),
        queue=queue,
        eta=eta(session, row.id, distinct, there, waits, at, live) if live else None,
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


def events(session: Session, job_id: str, after: int = 0, limit: int = 100) -> list[EventView]:
    """What happened to a job and to its steps (but not to those that were done before it), after event `after`, oldest first."""
    names = dict(
        session.execute(
            select(JobStep.step_id, JobStep.name).where(JobStep.job_id == job_id, ~JobStep.cached).order_by(JobStep.position.desc())
        ).all()
    )
    query = select(Event).where(or_(Event.job_id == job_id, Event.step_id.in_(names)), Event.id > after).order_by(Event.id).limit(limit)
    return [
        EventView(id=row.id, type=row.type, step=names[row.step_id] if row.step_id else None, data=row.data, at=row.at)
        for row in session.scalars(query)
    ]
