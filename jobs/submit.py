"""From a plan to rows: which steps are done already, which another job is doing, and which are new."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from ddcore.plan import Plan, engine_digest
from ddcore.plan import Step as Planned
from jobs import logs
from jobs.database import lock_graph, now
from jobs.durations import shapes
from jobs.graph import end_cancelling, finish_jobs, jobs_of, move_jobs, write_event
from jobs.ids import new_id
from jobs.models import LIVE_STEP, Artifact, Doorbell, Job, JobLabel, JobStep, Step, StepInput
from jobs.order import line_up, reprioritise
from jobs.store import Store


@dataclass
class Fates:
    """What becomes of each step of a plan, by key. A key in none of them is neither there nor needed.

    done: succeeded, reused. live: under way, shared. new: to be made. lost: rows of `new` keys whose files are gone. found: names of
    files that are in the store.
    """

    done: dict[str, Step] = field(default_factory=dict)
    live: dict[str, Step] = field(default_factory=dict)
    new: dict[str, Planned] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    found: set[str] = field(default_factory=set)

    def row(self, key: str) -> Step | None:
        return self.done.get(key) or self.live.get(key)


def decide(session: Session, store: Store, plan: Plan, wanted: Collection[str] = (), found: Collection[str] = ()) -> Fates:
    """Walk the plan backwards from its last steps and those named in `wanted`; only what they need must be there or be made.

    So a report whose cells are done does not bring back experts that were deleted since. Files are looked for (not read) only where
    a step that must be there has succeeded: all of a round at once, and not those that were `found` a moment ago.
    """
    keys = {planned.key for planned in plan}
    counting = select(Step).where(Step.key.in_(keys), Step.state.not_in(("failed", "cancelled")), Step.lost_at.is_(None))
    rows = {row.key: row for row in session.scalars(counting.execution_options(populate_existing=True))}
    files: dict[str, list[str]] = {}
    there, gone = set(found), set[str]()
    while True:
        lost = {step_id for step_id, names in files.items() if not gone.isdisjoint(names)}
        fates, relied = _walk(plan, wanted, rows, lost)
        fates.found = there
        new = relied - files.keys()
        if not new:
            return fates
        files |= {step_id: [] for step_id in new}
        for step_id, sha256 in session.execute(select(Artifact.step_id, Artifact.sha256).where(Artifact.step_id.in_(new))):
            files[step_id or ""].append(sha256)
        asked = {sha256 for step_id in new for sha256 in files[step_id]} - there - gone
        gone |= store.missing(asked)
        there |= asked - gone


def _walk(plan: Plan, wanted: Collection[str], rows: Mapping[str, Step], lost: Collection[str]) -> tuple[Fates, set[str]]:
    """What becomes of each step if the files of the steps in `lost` are gone; and the finished steps whose files must be there."""
    first: dict[str, Planned] = {}
    for planned in plan:
        first.setdefault(planned.key, planned)
    read = {key for planned in first.values() for key in input_keys(plan, planned)}
    needed = {key for key in first if key not in read} | {plan.steps[name].key for name in wanted}
    followed: set[str] = set()
    fates, relied = Fates(), set[str]()
    for key, planned in reversed(first.items()):
        row = rows.get(key)
        if row is not None and row.state in LIVE_STEP:
            if key in needed or key in followed:
                fates.live[key] = row
                followed.update(input_keys(plan, planned))
        elif row is not None and (key not in needed or row.id not in lost):
            fates.done[key] = row
            relied |= {row.id} if key in needed else set()
        elif key in needed:
            fates.new[key] = planned
            fates.lost += [row.id] if row is not None else []
            needed.update(input_keys(plan, planned))
    return fates, relied


def input_keys(plan: Plan, planned: Planned) -> list[str]:
    """Keys of a step's inputs, each once."""
    return list(dict.fromkeys(plan.steps[name].key for names in planned.inputs.values() for name in names))


def add_steps(session: Session, plan: Plan, fates: Fates, *, priority: int = 0, owner: str = "", max_attempts: int) -> dict[str, Step]:
    """Write the new steps with their edges, and doorbells for those that can run; returns every step of the plan that counts, by key."""
    at = now(session)
    if fates.lost:
        session.execute(update(Step).where(Step.id.in_(fates.lost)).values(lost_at=at).execution_options(synchronize_session=False))
    rows = {key: row for key in (planned.key for planned in plan) if (row := fates.row(key)) is not None}
    made: list[Step] = []
    shaped = shapes(plan)
    for key in dict.fromkeys(planned.key for planned in plan):
        if (planned := fates.new.get(key)) is None:
            continue
        waiting = sum(rows[needs].state != "succeeded" for needs in input_keys(plan, planned))
        rows[key] = Step(
            id=new_id("step"),
            key=key,
            kind=planned.kind,
            queue=planned.queue,
            params=planned.params,
            state="blocked" if waiting else "ready",
            waiting=waiting,
            priority=priority,
            owner=owner,
            shape=shaped[key],
            engine=engine_digest(),
            max_attempts=max_attempts,
            created_at=at,
            ready_at=None if waiting else at,
        )
        made.append(rows[key])
    session.add_all(made)
    session.flush()
    session.add_all([Doorbell(step_id=row.id, created_at=at) for row in made if row.state == "ready"])
    for planned in fates.new.values():
        for role, names in planned.inputs.items():
            for position, name in enumerate(names):
                needs = rows[plan.steps[name].key]
                session.add(StepInput(step_id=rows[planned.key].id, role=role, position=position, needs_id=needs.id))
    shared = [row.id for row in fates.live.values()]
    # Its key says that this engine would compute the same, so it need not wait for a worker of the engine that planned it first.
    adopted = update(Step).where(Step.id.in_(shared), Step.state != "running").values(engine=engine_digest())
    session.execute(adopted.execution_options(synchronize_session=False))
    session.flush()
    return rows


def submit(
    session: Session,
    store: Store,
    kind: str,
    spec: dict[str, Any],
    plan: Plan,
    *,
    resolved: dict[str, Any],
    wanted: Collection[str] = (),
    labels: Sequence[str] = (),
    priority: int = 0,
    owner: str = "",
    parent_id: str | None = None,
    max_attempts: int = 3,
    found: Collection[str] = (),
    afford: Callable[[Fates], None] = lambda fates: None,
) -> Job:
    """Write job, steps, edges, an event and the doorbells of what can run, in the caller's transaction.

    spec: what the user sent, as JSON; resolved: what its names meant. wanted: steps, beside the last ones, whose files are the result.
    found: files that were in the store a moment ago. afford: raises, before anything is written, if what is to be made costs too much.
    """
    lock_graph(session)
    fates = decide(session, store, plan, wanted, found)
    afford(fates)
    rows = add_steps(session, plan, fates, priority=priority, owner=owner, max_attempts=max_attempts)
    at = now(session)
    sent = {"kind": kind, "spec": spec, "resolved": resolved, "priority": priority, "owner": owner, "parent_id": parent_id}
    job = Job(id=new_id("job"), state="queued", created_at=at, **sent)
    session.add(job)
    session.flush()
    session.add_all([JobLabel(job_id=job.id, label=label) for label in sorted(set(labels))])
    counted = [planned for planned in plan if planned.key in rows]
    for position, planned in enumerate(counted):
        cached = planned.key in fates.done
        session.add(JobStep(job_id=job.id, name=planned.name, step_id=rows[planned.key].id, position=position, cached=cached))
    write_event(
        session,
        "job_queued",
        at,
        job_id=job.id,
        steps=len(counted),
        cached=sum(planned.key in fates.done for planned in counted),
        shared=sum(planned.key in fates.live for planned in counted),
        request_id=logs.bound_field("request_id"),
    )
    session.flush()
    running = [row.id for row in fates.live.values() if row.state == "running"]
    if running:
        move_jobs(session, [job.id], "running", at)
    for step_id in running:  # a step that was to stop for a cancelled job now runs for this one: the other need not wait for it
        end_cancelling(session, jobs_of(session, step_id, "cancelling"), at)
    if fates.live:
        reprioritise(session, [job.id])
    line_up(session, [job.id], [row.id for key, row in rows.items() if key in fates.new])
    finish_jobs(session, [job.id], at)
    session.flush()
    session.refresh(job)
    return job
