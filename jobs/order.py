"""Which ready step comes next: the most urgent first, then in turns between jobs, then the oldest.

A step's turn is how many steps of its job run, or wait before it, on its queue. So the first waiting steps of all jobs come before
the second of any, a job that has much running waits for those that have little, and a claim changes no other step's turn.
"""

from collections import Counter, defaultdict
from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from jobs.models import LIVE_JOB, LIVE_STEP, Job, JobStep, Step

_MANY = 5000  # ids in one statement; SQLite takes 32,766


def next_step(queue: str, engine: str) -> Select[str]:
    """The id of the step that a worker of `engine` on `queue` has to claim next. Two searches of one index, however many wait."""
    other = aliased(Step)
    urgent = select(func.max(other.priority)).where(other.state == "ready", other.queue == queue, other.engine == engine)
    here = and_(Step.state == "ready", Step.queue == queue, Step.engine == engine, Step.priority == urgent.scalar_subquery())
    return select(Step.id).where(here).order_by(Step.turn, Step.ready_at, Step.id).limit(1)


def rank(step: Step) -> tuple[int, int, datetime | None, str]:
    """By this, ready steps are in the order in which they are claimed."""
    return (-step.priority, step.turn, step.ready_at, step.id)


def comes_before(step: Step) -> ColumnElement[bool]:
    """Those that are claimed before a ready step, by the same workers, as things stand."""
    older = or_(Step.ready_at < step.ready_at, and_(Step.ready_at == step.ready_at, Step.id < step.id))
    sooner = or_(Step.turn < step.turn, and_(Step.turn == step.turn, older))
    return and_(
        Step.state == "ready",
        Step.queue == step.queue,
        Step.engine == step.engine,
        or_(Step.priority > step.priority, and_(Step.priority == step.priority, sooner)),
    )


def line_up(session: Session, job_ids: Collection[str], fresh: Collection[str]) -> None:
    """Count the turns of what the live ones of the jobs wait for; `fresh` are the steps that have just become ready.

    Call it when a step of the jobs becomes ready or runs no more. A step that waits already never falls back; one that several jobs
    share has the best turn that any of them gives it.
    """
    columns = (JobStep.job_id, Step.id, Step.queue, Step.state, Step.priority, Step.turn, Step.ready_at)
    query = select(*columns).join(JobStep, JobStep.step_id == Step.id).join(Job, Job.id == JobStep.job_id)
    rows = session.execute(query.where(JobStep.job_id.in_(job_ids), Job.state.in_(LIVE_JOB)).distinct()).all()
    taken = Counter((row.job_id, row.queue) for row in rows if row.state == "running")
    waiting = [row for row in rows if row.state == "ready"]
    offered: dict[str, list[int]] = defaultdict(list)
    for row in sorted(waiting, key=lambda row: (-row.priority, row.ready_at, row.id)):
        offered[row.id].append(taken[row.job_id, row.queue])
        taken[row.job_id, row.queue] += 1
    before = {row.id: row.turn for row in waiting}
    new = set(fresh)
    turns = {id: min(found if id in new else [*found, before[id]]) for id, found in offered.items()}
    if placed := [{"id": id, "turn": turns[id]} for id in new & turns.keys()]:
        session.execute(update(Step), placed)
    nearer: dict[int, list[str]] = defaultdict(list)  # mostly all by one: a step of their job has ended
    for id, turn in turns.items():
        if id not in new and turn != before[id]:
            nearer[before[id] - turn].append(id)
    for by, ids in nearer.items():
        for start in range(0, len(ids), _MANY):
            change = update(Step).where(Step.id.in_(ids[start : start + _MANY])).values(turn=Step.turn - by)
            session.execute(change.execution_options(synchronize_session=False))


def reprioritise(session: Session, job_ids: Collection[str]) -> None:
    """Make each unfinished step of the jobs as urgent as the most urgent live job that needs it."""
    query = select(Step.id, Step.state).join(JobStep, JobStep.step_id == Step.id).where(JobStep.job_id.in_(job_ids)).distinct()
    unfinished = [step_id for step_id, state in session.execute(query) if state in LIVE_STEP]
    wanted = select(func.max(Job.priority)).join(JobStep, JobStep.job_id == Job.id)
    urgent = wanted.where(JobStep.step_id == Step.id, Job.state.in_(LIVE_JOB)).correlate(Step).scalar_subquery()
    for start in range(0, len(unfinished), _MANY):
        change = update(Step).where(Step.id.in_(unfinished[start : start + _MANY])).values(priority=func.coalesce(urgent, 0))
        session.execute(change.execution_options(synchronize_session=False))
