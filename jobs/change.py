"""What may be changed of a job after it was posted: how urgent it is, what it is filed under, and whether its files stay."""

from collections.abc import Sequence

from sqlalchemy import delete
from sqlalchemy.orm import Session

from jobs.database import lock_graph, now
from jobs.errors import NotFound, WrongState
from jobs.graph import write_event
from jobs.models import LIVE_JOB, Job, JobLabel
from jobs.order import reprioritise


def change(
    session: Session, job_id: str, *, priority: int | None = None, labels: Sequence[str] | None = None, pinned: bool | None = None
) -> Job:
    """Give a job another priority or other labels, pin it or unpin it; None leaves things as they are.

    A priority counts from the next claim on, also for shared steps. A pin keeps the files of all its steps (`jobs.retention`).
    Raises `NotFound`, and `WrongState` for the priority of a job that is not live.
    """
    lock_graph(session)
    job = session.get(Job, job_id, populate_existing=True)
    if job is None:
        raise NotFound("job", job_id)
    if priority is not None and priority != job.priority:
        if job.state not in LIVE_JOB:
            raise WrongState(job_id, job.state, "given another priority", "nothing of it waits any more")
        write_event(session, "job_priority", now(session), job_id=job_id, before=job.priority, after=priority)
        job.priority = priority
        session.flush()
        reprioritise(session, [job_id])
    if labels is not None:
        session.execute(delete(JobLabel).where(JobLabel.job_id == job_id))
        session.add_all([JobLabel(job_id=job_id, label=label) for label in sorted(set(labels))])
        session.flush()
    if pinned is not None:
        job.pinned = pinned
        session.flush()
    return job
