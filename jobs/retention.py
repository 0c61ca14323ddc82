"""How long files are kept that nobody uses, and what is kept for good.

A file is kept with all files of its step. Steps of the kinds in `INTERMEDIATE` leave what can be computed again; each kind may be given
a time, counted from the last use of a step: when it ended, or when the last job that had it among its steps did. (Downloads do not
count.) Without a time files are kept for good, and so are those of the other kinds, the results, unless they are named. Whatever the
times, nothing goes that a live job has among its steps, that a step under way reads, that a pinned job made or used, or that a user sent.

What has outlived its time goes in one transaction, under the graph lock, in which jobs are posted too: the step is lost, so that a job
that needs it computes it again; its artifacts are gone; and their files are condemned (`jobs.condemned`).
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from ddcore.plan import STEP_VERSION
from jobs import condemned
from jobs.database import lock_graph, now
from jobs.graph import JOB_ENDS, write_event
from jobs.models import LIVE_STEP, Artifact, Job, JobStep, Step, StepInput
from jobs.store import Blob

RESULTS = ("distill", "export", "figures", "report", "ranking", "observe")
INTERMEDIATE = tuple(kind for kind in STEP_VERSION if kind not in RESULTS)
AT_ONCE = 50  # steps of one transaction


def lifetimes(keep_days: Mapping[str, float], unused_days: float | None = None) -> dict[str, timedelta]:
    """How long the files of each kind of step are kept; kinds that are kept for good are absent.

    keep_days: of the settings. unused_days: for all intermediate kinds, whatever the settings say.
    """
    days = {kind: keep_days["intermediate"] for kind in INTERMEDIATE if "intermediate" in keep_days} | dict(keep_days)
    days.pop("intermediate", None)
    if unused_days is not None:
        days |= dict.fromkeys(INTERMEDIATE, unused_days)
    return {kind: timedelta(days=number) for kind, number in days.items()}


def outlived(session: Session, lives: Mapping[str, timedelta]) -> dict[str, tuple[condemned.Amount, datetime]]:
    """What `expire` would take, by kind of step, and when the oldest of it was made."""
    at, found = now(session), {}
    for kind, life in lives.items():
        query = select(func.count(), func.sum(Artifact.size), func.min(Artifact.created_at)).join(Step, Step.id == Artifact.step_id)
        files, size, oldest = session.execute(query.where(Artifact.gone_at.is_(None), *_outlived(session, kind, at - life))).one()
        if files:
            found[kind] = condemned.Amount(files, int(size)), oldest
    return found


def expire(session: Session, kind: str, life: timedelta) -> list[Artifact]:
    """Let go of the files of some steps of one kind that have outlived their time; returns them, none when there are no such steps."""
    lock_graph(session)
    at = now(session)
    steps = list(session.scalars(select(Step.id).where(*_outlived(session, kind, at - life)).order_by(Step.finished_at).limit(AT_ONCE)))
    files = session.scalars(select(Artifact).where(Artifact.step_id.in_(steps), Artifact.gone_at.is_(None))).all()
    lose(session, Step.id.in_(steps), at)
    gone = update(Artifact).where(Artifact.step_id.in_(steps), Artifact.gone_at.is_(None)).values(gone_at=at)
    session.execute(gone.execution_options(synchronize_session=False))
    for step_id in steps:
        write_event(session, "step_files_removed", at, step_id=step_id)
    condemned.condemn(session, [Blob(file.sha256, file.size) for file in files])
    return list(files)


def lose(session: Session, which: ColumnElement[bool], at: datetime) -> None:
    """Mark finished steps so that no job relies on their files any more."""
    lost = update(Step).where(which, Step.state == "succeeded", Step.lost_at.is_(None)).values(lost_at=at)
    session.execute(lost.execution_options(synchronize_session=False))


def lose_file(session: Session, sha256: str) -> None:
    """A file is missing, or was damaged and set aside: the steps that left it are lost."""
    lock_graph(session)
    left = select(Artifact.step_id).where(Artifact.sha256 == sha256, Artifact.gone_at.is_(None))
    lose(session, Step.id.in_(left), now(session))


def _outlived(session: Session, kind: str, before: datetime) -> list[ColumnElement[bool]]:
    """Conditions on a step: it has files, was not used since `before`, and nothing keeps it."""
    files = select(Artifact.id).where(Artifact.step_id == Step.id, Artifact.gone_at.is_(None))
    jobs = select(Job.id).join(JobStep, JobStep.job_id == Job.id).where(JobStep.step_id == Step.id)
    keep = or_(Job.pinned, Job.state.not_in(JOB_ENDS), Job.finished_at >= before)
    reader = aliased(Step)
    readers = select(reader.id).join(StepInput, StepInput.step_id == reader.id)
    readers = readers.where(StepInput.needs_id == Step.id, reader.state.in_(LIVE_STEP))
    given = files.where(Artifact.sha256.in_(condemned.given(session)))
    return [
        Step.kind == kind,
        Step.state == "succeeded",
        Step.finished_at < before,
        files.correlate(Step).exists(),
        ~jobs.where(keep).correlate(Step).exists(),
        ~readers.correlate(Step).exists(),
        ~given.correlate(Step).exists(),
    ]
