"""Who may run which step: claims by compare-and-swap, leases by the database's clock, and the fence.

`attempt` rises with every claim. Whoever writes on behalf of a step names its attempt, and writes nothing if that is no longer the
current one: a worker that was frozen past its lease cannot disturb its successor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, delete, func, select, update
from sqlalchemy.orm import Session

from jobs.database import lock_graph, now
from jobs.errors import LeaseLost
from jobs.graph import after_failure, after_start, after_stop, after_success, is_wanted, jobs_of, move_steps, write_event
from jobs.ids import new_id
from jobs.models import LIVE_JOB, Artifact, Doorbell, Event, Step, StepInput
from jobs.order import next_step

LEASE_SECONDS = 90.0
SHORT_OF_MEMORY = ("out_of_memory", "worker_lost")  # failures after which to keep less: a kernel that is out of memory kills
SPARED = 10  # failures of a step that its machine had, before they count like any other: it may be the step that breaks machines
LONGEST_TEXT = 10_000  # characters of an error's detail, hint or trace
MOST_JOBS = 10  # that a claim names


@dataclass(frozen=True)
class Claim:
    """A step that this worker, and nobody else, runs until `lease_until`. jobs: live ones that need it, some of them if they are many."""

    step_id: str
    attempt: int
    kind: str
    queue: str
    lease_until: datetime
    jobs: tuple[str, ...]


@dataclass(frozen=True)
class InputFile:
    """A file that an input step left behind. size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Work:
    """All that running a step takes. inputs: role -> for each input step, in the plan's order, its files.

    key names the output, and so a checkpoint of it: a later step with the same key goes on from there. short_of_memory: the attempt
    before failed in a way that points to it, so this one is to keep as little in memory as it can. jobs: as in `Claim`.
    """

    step_id: str
    attempt: int
    key: str
    kind: str
    params: dict[str, Any]
    inputs: dict[str, list[list[InputFile]]]
    short_of_memory: bool
    jobs: tuple[str, ...]


@dataclass(frozen=True)
class NewArtifact:
    """A file that is in the store already and becomes visible with the step's success."""

    name: str
    kind: str
    media_type: str
    sha256: str
    size: int


def take(session: Session, queue: str, worker: str, engine: str, *, lease_seconds: float = LEASE_SECONDS) -> Claim | None:
    """Claim the step whose turn it is on a queue, among those that `engine` planned; None if none is ready.

    A doorbell says no more than that there may be work on its queue, so one that comes late or twice is harmless.
    """
    lock_graph(session)
    step_id = session.scalar(next_step(queue, engine))
    if step_id is None:
        return None
    got, unsent = _claim(session, step_id, worker, lease_seconds)
    if unsent and (other := session.scalar(next_step(queue, engine))) is not None:
        # The doorbell that led here was another step's, and the claim has removed the one of this step: they change places.
        session.add(Doorbell(step_id=other, created_at=now(session)))
    return got


def claim(session: Session, step_id: str, worker: str, *, lease_seconds: float = LEASE_SECONDS) -> Claim | None:
    """Take this step; None if it is not ready."""
    lock_graph(session)
    return _claim(session, step_id, worker, lease_seconds)[0]


def _claim(session: Session, step_id: str, worker: str, lease_seconds: float) -> tuple[Claim | None, bool]:
    """The claim, and whether a doorbell of the step was still to be sent."""
    bell = select(Doorbell.id).where(Doorbell.step_id == Step.id).correlate(Step).exists()
    step = session.execute(select(Step.attempt, Step.kind, Step.queue, bell.label("unsent")).where(Step.id == step_id)).one_or_none()
    at = now(session)
    until = at + timedelta(seconds=lease_seconds)
    fresh: dict[str, Any] = dict.fromkeys(("done", "total", "unit", "note", "rate", "progress_at"))
    values = {"attempt": Step.attempt + 1, "worker": worker, "lease_until": until, "started_at": at, **fresh}
    if step is None or not move_steps(session, "running", at, Step.id == step_id, **values):
        return None, False
    if step.unsent:
        session.execute(delete(Doorbell).where(Doorbell.step_id == step_id))
    attempt = step.attempt + 1
    with session.no_autoflush:  # all events at once
        write_event(session, "step_started", at, step_id=step_id, attempt=attempt, worker=worker)
        jobs = after_start(session, step_id, at)
    session.flush()
    return Claim(step_id, attempt, step.kind, step.queue, until, tuple(jobs[:MOST_JOBS])), step.unsent


def stands(session: Session, claim: Claim) -> bool:
    """Whether a claim, of which it is not known whether it was committed, was, and nobody has touched it since."""
    lock_graph(session)  # the server may be committing it yet, and holds the lock until it has
    same = Step.lease_until == claim.lease_until  # told by the clock at that claim: no other one has it
    return session.scalar(select(Step.id).where(holds(claim.step_id, claim.attempt), same)) is not None


def heartbeat(session: Session, step_id: str, attempt: int, *, lease_seconds: float = LEASE_SECONDS) -> Literal["ok", "cancel", "lost"]:
    """Renew the lease. "cancel": no live job needs the step: stop it, then `release` it. "lost": another attempt owns it."""
    until = now(session) + timedelta(seconds=lease_seconds)
    renewed = update(Step).where(holds(step_id, attempt)).values(lease_until=until).returning(Step.id)
    if session.scalar(renewed.execution_options(synchronize_session=False)) is None:
        return "lost"
    return "ok" if session.scalar(select(is_wanted()).where(Step.id == step_id)) else "cancel"


def load(session: Session, step_id: str, attempt: int) -> Work:
    """What the runner of this attempt needs. Raises `LeaseLost`."""
    step = session.scalar(select(Step).where(holds(step_id, attempt)).execution_options(populate_existing=True))
    if step is None:
        raise LeaseLost(step_id, attempt)
    edges = session.scalars(select(StepInput).where(StepInput.step_id == step_id).order_by(StepInput.role, StepInput.position)).all()
    needed = select(StepInput.needs_id).where(StepInput.step_id == step_id)
    files: dict[str, list[InputFile]] = {edge.needs_id: [] for edge in edges}
    for file in session.scalars(select(Artifact).where(Artifact.step_id.in_(needed)).order_by(Artifact.name)):
        files[file.step_id or ""].append(InputFile(file.name, file.sha256, file.size))
    inputs: dict[str, list[list[InputFile]]] = {}
    for edge in edges:
        inputs.setdefault(edge.role, []).append(files[edge.needs_id])
    short = _short_of_memory(session, step)
    return Work(step_id, attempt, step.key, step.kind, step.params, inputs, short, _jobs(session, step_id))


def succeed(session: Session, step_id: str, attempt: int, artifacts: Sequence[NewArtifact], summary: dict[str, Any]) -> None:
    """Finish the step: its files become visible, its dependents ready, its jobs perhaps done, all at once.

    The files must be in the store already. Calling it again for the same attempt changes nothing. Raises `LeaseLost`.
    """
    lock_graph(session)
    at = now(session)
    mended: dict[str, Any] = dict.fromkeys(("error_code", "error_detail", "error_hint"))  # of earlier attempts; their events tell
    if not move_steps(
        session, "succeeded", at, holds(step_id, attempt), summary=summary, done=func.coalesce(Step.total, Step.done), **mended
    ):
        if session.scalar(select(Step.id).where(Step.id == step_id, Step.attempt == attempt, Step.state == "succeeded")):
            return
        raise LeaseLost(step_id, attempt)
    with session.no_autoflush:  # all rows of a table at once
        for one in artifacts:
            fields = {"name": one.name, "kind": one.kind, "media_type": one.media_type, "sha256": one.sha256, "size": one.size}
            session.add(Artifact(id=new_id("art"), step_id=step_id, created_at=at, **fields))
        write_event(session, "step_succeeded", at, step_id=step_id, attempt=attempt)
        after_success(session, step_id, at)
    session.flush()


def fail(
    session: Session,
    step_id: str,
    attempt: int,
    code: str,
    detail: str,
    hint: str = "",
    *,
    retryable: bool = False,
    machine: bool = False,
    trace: str = "",
) -> None:
    """The attempt failed. A retryable failure makes the step ready again until it has failed `max_attempts` times. Raises `LeaseLost`.

    machine: a retryable failure that is not the step's but its machine's; the first `SPARED` of these do not count. trace: what only
    who mends the program reads; it is kept in the step's events.
    """
    lock_graph(session)
    _fail(session, step_id, attempt, code, detail, hint, retryable=retryable, machine=machine, trace=trace)


def release(session: Session, step_id: str, attempt: int) -> None:
    """Hand the step back unfinished (drained, or told to cancel): not a failure. Raises `LeaseLost`."""
    lock_graph(session)
    _require(session, step_id, attempt)
    after_stop(session, step_id, now(session))


def reap(session: Session, limit: int = 100) -> int:
    """Take back steps whose lease has run out; each is a retryable failure `worker_lost` of its machine. Returns how many."""
    lock_graph(session)
    at = now(session)
    expired = select(Step.id, Step.attempt, Step.worker).where(Step.state == "running", Step.lease_until < at).order_by(Step.lease_until)
    # One that is being renewed just now is held by its heartbeat, and passed over.
    found = session.execute(expired.limit(limit).with_for_update(skip_locked=True)).all()
    for step_id, attempt, worker in found:
        detail = f"worker {worker} was not heard of again during attempt {attempt}"
        hint = "look at the worker's log: the machine or the process died, or was out of memory; then retry the job"
        _fail(session, step_id, attempt, "worker_lost", detail, hint, retryable=True, machine=True, expired=True)
    return len(found)


def holds(step_id: str, attempt: int) -> ColumnElement[bool]:
    """The fence: this attempt still owns the step."""
    return and_(Step.id == step_id, Step.attempt == attempt, Step.state == "running")


def _jobs(session: Session, step_id: str) -> tuple[str, ...]:
    return tuple(jobs_of(session, step_id, *LIVE_JOB)[:MOST_JOBS])


def _require(session: Session, step_id: str, attempt: int) -> Step:
    step = session.scalar(select(Step).where(holds(step_id, attempt)).execution_options(populate_existing=True))
    if step is None:
        raise LeaseLost(step_id, attempt)
    return step


def _fail(
    session: Session,
    step_id: str,
    attempt: int,
    code: str,
    detail: str,
    hint: str,
    *,
    retryable: bool,
    machine: bool = False,
    trace: str = "",
    expired: bool = False,
) -> None:
    step = _require(session, step_id, attempt)
    at = now(session)
    detail, hint = _storable(detail), _storable(hint)
    error = {"error_code": code, "error_detail": detail, "error_hint": hint}
    if code == "out_of_memory" and _short_of_memory(session, step):
        retryable = False  # this attempt has kept as little as it could
    before = _spared(session, step_id)
    spared = retryable and machine and before < SPARED
    failures = step.failures + (not spared)
    said: dict[str, Any] = {"attempt": attempt, "failures": failures, "code": code, "detail": detail, "hint": hint}
    if trace:
        said["trace"] = _storable(trace)
    if expired:
        said["expired"] = True
    if spared:
        said["spared"] = True
    if spared or (retryable and failures < step.max_attempts):
        kept = update(Step).where(Step.id == step_id).values(failures=failures, **error)
        session.execute(kept.execution_options(synchronize_session=False))
        write_event(session, "step_retried", at, step_id=step_id, **said)
        after_stop(session, step_id, at)
        return
    if retryable:
        uncounted = f", and {before} that did not count" if before else ""
        detail = f"{detail} (attempt {failures} of {step.max_attempts}{uncounted})"
    move_steps(session, "failed", at, holds(step_id, attempt), failures=failures, **error)
    write_event(session, "step_failed", at, step_id=step_id, **said)
    after_failure(session, step_id, at, code, detail, hint)


def _short_of_memory(session: Session, step: Step) -> bool:
    """Whether the failure before points to a want of memory, and the next attempt is to keep as little as it can.

    A worker that fell silent as a whole was more likely switched off with its machine, unless the failure before that points there too.
    """
    if step.error_code not in SHORT_OF_MEMORY:
        return False
    before = select(Event.data).where(Event.step_id == step.id, Event.type == "step_retried").order_by(Event.id.desc()).limit(2)
    last, *earlier = session.scalars(before)
    return not last.get("expired") or any(one["code"] in SHORT_OF_MEMORY for one in earlier)


def _spared(session: Session, step_id: str) -> int:
    """How many failures of the step have not been counted."""
    spared = Event.data["spared"].as_boolean().is_(True)
    counted = select(func.count()).select_from(Event).where(Event.step_id == step_id, Event.type == "step_retried", spared)
    return session.scalar(counted) or 0


def _storable(text: str) -> str:
    """PostgreSQL takes no NUL in a text."""
    text = text.replace("\x00", "")
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
