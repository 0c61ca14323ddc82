"""Cancelling a job takes down only the steps that no other live job needs."""

from sqlalchemy.orm import Session

from jobs.database import lock_graph, now
from jobs.errors import NotFound, WrongState
from jobs.graph import JOB_ENDS, drop_unwanted, end_cancelling, move_jobs
from jobs.models import Job


def cancel(session: Session, job_id: str) -> Job:
    """Cancel a job: at once, or `cancelling` until a step that runs for it alone has stopped. Again while cancelling: no change.

    Raises `NotFound`, and `WrongState` if the job has ended.
    """
    lock_graph(session)
    job = session.get(Job, job_id, populate_existing=True)
    if job is None:
        raise NotFound("job", job_id)
    if job.state in JOB_ENDS:
        raise WrongState(job_id, job.state, "cancelled", "it has ended; its files stay for reuse")
    at = now(session)
    move_jobs(session, [job_id], "cancelling", at)
    drop_unwanted(session, [job_id], at)
    end_cancelling(session, [job_id], at)
    session.flush()
    session.refresh(job)
    return job
