"""The states of jobs and steps: who may move where, and what follows when a step ends.

Everything here runs inside a transaction that holds the graph lock (`jobs.database.lock_graph`).
"""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, or_, select, update
from sqlalchemy.orm import Session

from jobs.models import LIVE_JOB, Dataset, Doorbell, Event, Job, JobStep, Step, StepInput
from jobs.order import line_up, reprioritise
from jobs.results import add_result

# From each state, the states that may follow. Nothing follows an end.
JOB_MOVES: dict[str, tuple[str, ...]] = {
    "queued": ("running", "cancelling", "succeeded", "failed", "cancelled"),
    "running": ("cancelling", "succeeded", "failed", "cancelled"),
    "cancelling": ("cancelled",),
    "succeeded": (),
    "failed": (),
    "cancelled": (),
}
STEP_MOVES: dict[str, tuple[str, ...]] = {
    "blocked": ("ready", "cancelled"),
    "ready": ("running", "cancelled"),
    "running": ("ready", "succeeded", "failed", "cancelled"),
    "succeeded": (),
    "failed": (),
    "cancelled": (),
}
JOB_ENDS = tuple(state for state, after in JOB_MOVES.items() if not after)
STEP_ENDS = tuple(state for state, after in STEP_MOVES.items() if not after)


def write_event(session: Session, kind: str, at: datetime, *, job_id: str | None = None, step_id: str | None = None, **data: Any) -> None:
    """Add one event to the history of a job or of a step (which every job that shares it shows)."""
    session.add(Event(job_id=job_id, step_id=step_id, type=kind, data=data, at=at))


def move_jobs(session: Session, ids: Collection[str], to: str, at: datetime, *where: ColumnElement[bool], **values: Any) -> list[str]:
    """Move those of the jobs that match and may go there, by compare-and-swap; returns their ids, oldest first."""
    if not ids:
        return []
    sources = [state for state, after in JOB_MOVES.items() if to in after]
    if to == "running":
        values["started_at"] = at
    if to in JOB_ENDS:
        values["finished_at"] = at
    change = update(Job).where(Job.id.in_(ids), Job.state.in_(sources), *where).values(state=to, **values).returning(Job.id)
    moved = sorted(session.scalars(change.execution_options(synchronize_session=False)))
    for job_id in moved:
        said = {name: values[name] for name in ("error_code", "error_detail", "error_hint") if name in values}
        write_event(session, f"job_{to}", at, job_id=job_id, **said)
    return moved


def move_steps(session: Session, to: str, at: datetime, *where: ColumnElement[bool], **values: Any) -> list[str]:
    """Move the steps that match and may go there, by compare-and-swap; returns their ids.

    Doorbells follow the state, but for that of a step that is claimed: only ready ones have any, and who claims looks for it.
    """
    sources = [state for state, after in STEP_MOVES.items() if to in after]
    if to == "ready":
        values |= {"ready_at": at, "rings": 0, "rung_at": None}
    if to in STEP_ENDS:
        values["finished_at"] = at
    if to != "running":
        values |= {"lease_until": None, "worker": None}
    change = update(Step).where(Step.state.in_(sources), *where).values(state=to, **values).returning(Step.id)
    moved = sorted(session.scalars(change.execution_options(synchronize_session=False)))
    if to == "ready":
        session.add_all([Doorbell(step_id=step_id, created_at=at) for step_id in moved])
    elif moved and to == "cancelled":
        session.execute(delete(Doorbell).where(Doorbell.step_id.in_(moved)))
    return moved


def is_wanted() -> ColumnElement[bool]:
    """Whether a live job needs the step, or the catalogue does: an upload is read once even if nobody waits for it."""
    by_job = select(JobStep.job_id).join(Job, Job.id == JobStep.job_id).where(JobStep.step_id == Step.id, Job.state.in_(LIVE_JOB))
    by_catalogue = select(Dataset.id).where(Dataset.step_key == Step.key, Dataset.origin == "upload")
    return or_(by_job.correlate(Step).exists(), and_(Step.kind == "dataset", by_catalogue.correlate(Step).exists()))


def drop_unwanted(session: Session, job_ids: Collection[str], at: datetime) -> None:
    """Cancel those steps of the jobs, which have ended, that have not begun and that nothing live needs.

    Running ones learn it from their heartbeat; those that others share are as urgent as these others are.
    """
    mine = select(JobStep.step_id).where(JobStep.job_id.in_(job_ids))
    for step_id in move_steps(session, "cancelled", at, Step.id.in_(mine), Step.state.in_(("blocked", "ready")), ~is_wanted()):
        write_event(session, "step_cancelled", at, step_id=step_id)
    reprioritise(session, job_ids)


def end_cancelling(session: Session, job_ids: Collection[str], at: datetime) -> None:
    """A job that is being cancelled ends when none of its steps is still running for nobody."""
    stopping = (
        select(Step.id).join(JobStep, JobStep.step_id == Step.id).where(JobStep.job_id == Job.id, Step.state == "running", ~is_wanted())
    )
    move_jobs(session, job_ids, "cancelled", at, Job.state == "cancelling", ~stopping.correlate(Job).exists())


def jobs_of(session: Session, step_id: str, *states: str) -> list[str]:
    """Ids of the jobs in one of the states that need the step."""
    return sorted(_states_of_jobs(session, step_id, states))


def _states_of_jobs(session: Session, step_id: str, states: Collection[str]) -> dict[str, str]:
    """The states of the jobs in one of the states that need the step, by their ids."""
    found = select(Job.id, Job.state).join(JobStep, JobStep.job_id == Job.id).where(JobStep.step_id == step_id, Job.state.in_(states))
    return dict(session.execute(found.distinct()).all())


def after_start(session: Session, step_id: str, at: datetime) -> list[str]:
    """The first step that runs starts its jobs. Returns the live jobs that need the step."""
    jobs = _states_of_jobs(session, step_id, LIVE_JOB)
    move_jobs(session, [job_id for job_id, state in jobs.items() if state == "queued"], "running", at)
    return sorted(jobs)


def after_success(session: Session, step_id: str, at: datetime) -> None:
    """Steps whose last input this was become ready; jobs whose last step this was succeed."""
    dependents = select(StepInput.step_id).where(StepInput.needs_id == step_id)
    fewer = update(Step).where(Step.id.in_(dependents), Step.state == "blocked").values(waiting=Step.waiting - 1).returning(Step.id)
    touched = list(session.scalars(fewer.execution_options(synchronize_session=False)))
    ready = move_steps(session, "ready", at, Step.id.in_(touched), Step.state == "blocked", Step.waiting == 0) if touched else []
    for ready_id in ready:
        write_event(session, "step_ready", at, step_id=ready_id)
    jobs = _states_of_jobs(session, step_id, (*LIVE_JOB, "cancelling"))
    live = sorted(job_id for job_id, state in jobs.items() if state != "cancelling")
    busy = line_up(session, live, ready)
    finish_jobs(session, [job_id for job_id in live if job_id not in busy], at)
    end_cancelling(session, sorted(jobs.keys() - set(live)), at)


def finish_jobs(session: Session, job_ids: Collection[str], at: datetime) -> None:
    """Those of the live jobs that have no step left to do succeed, with their result."""
    open_step = select(JobStep.job_id).join(Step, Step.id == JobStep.step_id).where(JobStep.job_id == Job.id, Step.state != "succeeded")
    for job_id in move_jobs(session, job_ids, "succeeded", at, ~open_step.correlate(Job).exists()):
        add_result(session, job_id, at)


def after_failure(session: Session, step_id: str, at: datetime, code: str, detail: str, hint: str) -> None:
    """Every live job that needs the step fails, naming it; what only they needed is dropped. Finished steps stay for reuse."""
    failed = jobs_of(session, step_id, *LIVE_JOB)
    for job_id in failed:
        name = session.scalar(select(JobStep.name).where(JobStep.job_id == job_id, JobStep.step_id == step_id).order_by(JobStep.position))
        move_jobs(session, [job_id], "failed", at, error_code=code, error_detail=f"step {name}: {detail}", error_hint=hint)
    drop_unwanted(session, failed, at)
    end_cancelling(session, jobs_of(session, step_id, "cancelling"), at)


def after_stop(session: Session, step_id: str, at: datetime) -> None:
    """A running step was handed back: ready again if something live needs it, else cancelled."""
    ready = bool(move_steps(session, "ready", at, Step.id == step_id, Step.state == "running", is_wanted()))
    if ready:
        line_up(session, jobs_of(session, step_id, *LIVE_JOB), [step_id])
    else:
        move_steps(session, "cancelled", at, Step.id == step_id, Step.state == "running")
    write_event(session, "step_released" if ready else "step_cancelled", at, step_id=step_id)
    end_cancelling(session, jobs_of(session, step_id, "cancelling"), at)
