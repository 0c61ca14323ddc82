"""Making jobs: of a spec, of an older job, or only on paper."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from ddcore.checks import as_distillation, digest
from ddcore.networks.shapes import Shapes
from ddcore.specs import DistillSpec, EvaluateSpec, ObserveSpec, SweepSpec
from jobs import catalogue, quota
from jobs.bodies import Body
from jobs.database import lock_graph, now
from jobs.errors import IdempotencyConflict, NotFound, WrongState
from jobs.estimate import step_bytes
from jobs.models import Dataset, Idempotency, Job, JobLabel, Result
from jobs.resolve import JobSpec, Resolved, resolve, spec_of
from jobs.store import Store
from jobs.submit import Fates, decide, submit


class PlannedStep(Body):
    """A step that a job would have. cached: done already; shared: another job is doing it."""

    name: str
    kind: str
    queue: str
    key: str
    state: Literal["cached", "shared", "new"]
    inputs: list[str]
    disk_bytes: int = Field(description="estimate of what it would write; 0 unless new")


class DryRun(Body):
    """What posting a spec would do."""

    kind: str
    steps: list[PlannedStep]
    counts: dict[str, int] = Field(description="steps by state", examples=[{"cached": 3, "shared": 0, "new": 4}])
    disk_bytes: int = Field(description="estimate of what the new steps would write")


@dataclass(frozen=True)
class Found:
    """What `look` found: files that are in the store, the tensors of the spec's checkpoints, and `quota.used_bytes` if there is a quota."""

    files: Collection[str] = ()
    checkpoints: Mapping[str, Shapes] = field(default_factory=dict)
    used: int | None = None


NOTHING = Found()


def create_distill(session: Session, store: Store, spec: DistillSpec, **options: Any) -> Job:
    """Post a distillation; see `create` for options and errors."""
    return create(session, store, spec, **options)


def create_evaluate(session: Session, store: Store, spec: EvaluateSpec, **options: Any) -> Job:
    """Post an evaluation; see `create` for options and errors."""
    return create(session, store, spec, **options)


def create_observe(session: Session, store: Store, spec: ObserveSpec, **options: Any) -> Job:
    """Post an observation; see `create` for options and errors."""
    return create(session, store, spec, **options)


def create_sweep(session: Session, store: Store, spec: SweepSpec, **options: Any) -> Job:
    """Post a sweep; see `create` for options and errors."""
    return create(session, store, spec, **options)


def create(
    session: Session,
    store: Store,
    spec: JobSpec,
    *,
    labels: Sequence[str] = (),
    priority: int = 0,
    owner: str = "",
    parent_id: str | None = None,
    idempotency_key: str | None = None,
    max_attempts: int = 3,
    found: Found = NOTHING,
) -> Job:
    """Post a job. The same idempotency key with the same body returns the first job. found: what `look` found.

    owner: a name by which workers are divided fairly; whoever posts may give any.
    Raises `SpecError` with a problem for each field that makes no sense, `IdempotencyConflict`, `NoRoom`.
    """
    lock_graph(session)
    sent = spec.model_dump(mode="json")
    said = {"kind": type(spec).__name__, "spec": sent, "labels": sorted(set(labels)), "priority": priority}
    body = digest(said | ({"owner": owner} if owner else {}))
    if (first := _first_answer(session, idempotency_key, body)) is not None:
        return first
    resolved = resolve(session, store, spec, known=dict(found.checkpoints))
    options = {"labels": labels, "priority": priority, "owner": owner, "parent_id": parent_id, "max_attempts": max_attempts}
    made = _submit(session, store, resolved, options, found)
    return _remember(session, idempotency_key, body, made)


def retry(
    session: Session,
    store: Store,
    job_id: str,
    *,
    idempotency_key: str | None = None,
    max_attempts: int = 3,
    found: Found = NOTHING,
) -> Job:
    """A new job of the same spec, labels, priority and owner, whose `parent_id` is this one; what was finished is not done again.

    Its names mean what they meant then. Raises `NotFound`, `WrongState` unless the job failed or was cancelled, `SpecError`,
    `IdempotencyConflict`.
    """
    lock_graph(session)
    body = digest({"retry": job_id})
    if (first := _first_answer(session, idempotency_key, body)) is not None:
        return first
    job = _job(session, job_id)
    if job.state not in ("failed", "cancelled"):
        raise WrongState(job_id, job.state, "retried", "only a failed or cancelled job is retried; clone it for another one like it")
    return _remember(session, idempotency_key, body, _again(session, store, job, {"max_attempts": max_attempts}, found))


def clone(
    session: Session,
    store: Store,
    job_id: str,
    *,
    labels: Sequence[str] | None = None,
    priority: int | None = None,
    owner: str | None = None,
    idempotency_key: str | None = None,
    max_attempts: int = 3,
    found: Found = NOTHING,
) -> Job:
    """A new job of the same spec as one in any state, whose `parent_id` is that one; what was finished is not done again.

    labels, priority, owner: None for those of that job. Its names mean what they meant then. Raises `NotFound`, `SpecError`,
    `IdempotencyConflict`, `NoRoom`.
    """
    lock_graph(session)
    other = {name: value for name, value in (("labels", labels), ("priority", priority), ("owner", owner)) if value is not None}
    body = digest({"clone": job_id, **other})
    if (first := _first_answer(session, idempotency_key, body)) is not None:
        return first
    made = _again(session, store, _job(session, job_id), {"max_attempts": max_attempts, **other}, found)
    return _remember(session, idempotency_key, body, made)


def _job(session: Session, job_id: str) -> Job:
    job = session.get(Job, job_id, populate_existing=True)
    if job is None:
        raise NotFound("job", job_id)
    return job


def _again(session: Session, store: Store, job: Job, options: dict[str, Any], found: Found) -> Job:
    """Submit what a job asked for once more; options that are absent are as they were."""
    labels = list(session.scalars(select(JobLabel.label).where(JobLabel.job_id == job.id)))
    resolved = resolve(session, store, spec_of(job), job.resolved["datasets"], dict(found.checkpoints))
    before = {"labels": labels, "priority": job.priority, "owner": job.owner, "parent_id": job.id}
    return _submit(session, store, resolved, before | options, found, spec=job.spec)


def look(session: Session, store: Store, spec: JobSpec, pinned: Mapping[str, str] | None = None) -> Found:
    """What posting `spec` would look for in the store, and that others need not wait for: with it, the transaction that posts it asks a
    server only for files that were not there now. Raises `SpecError`.
    """
    used = quota.used_bytes(session) if store.quota else None
    if store.here("0" * 64) is not None:
        return Found(used=used)  # in a folder it takes no time
    checkpoints: dict[str, Shapes] = {}
    resolved = resolve(session, store, spec, pinned, checkpoints)
    return Found(decide(session, store, resolved.plan, resolved.wanted).found, checkpoints, used)


def look_again(session: Session, store: Store, job_id: str) -> Found:
    """`look` for a retry or a clone. Raises `NotFound`, `SpecError`."""
    job = _job(session, job_id)
    return look(session, store, spec_of(job), job.resolved["datasets"])


def dry_run(session: Session, store: Store, spec: JobSpec) -> DryRun:
    """What posting `spec` would do now. Writes nothing. Raises `SpecError`."""
    resolved = resolve(session, store, spec)
    fates = decide(session, store, resolved.plan, resolved.wanted)
    steps = _planned(session, resolved, fates)
    counts = {state: sum(step.state == state for step in steps) for state in ("cached", "shared", "new")}
    return DryRun(kind=resolved.kind, steps=steps, counts=counts, disk_bytes=sum(step.disk_bytes for step in steps))


def _first_answer(session: Session, key: str | None, body: str) -> Job | None:
    """The job that this idempotency key made before; None if it is new. Raises `IdempotencyConflict` if it came with another body."""
    used = None if key is None else session.get(Idempotency, key)
    if used is None:
        return None
    if used.body != body:
        raise IdempotencyConflict(used.key)
    return session.get_one(Job, used.job_id)


def _remember(session: Session, key: str | None, body: str, job: Job) -> Job:
    if key is not None:
        session.add(Idempotency(key=key, body=body, job_id=job.id, created_at=now(session)))
        session.flush()
    return job


def _submit(
    session: Session, store: Store, resolved: Resolved, options: dict[str, Any], found: Found, spec: dict[str, Any] | None = None
) -> Job:
    sent = resolved.spec.model_dump(mode="json") if spec is None else spec

    def afford(fates: Fates) -> None:
        quota.require(session, store, sum(step.disk_bytes for step in _planned(session, resolved, fates)), found.used)

    options = options | {"resolved": resolved.meaning, "wanted": resolved.wanted, "found": found.files, "afford": afford}
    return submit(session, store, resolved.kind, sent, resolved.plan, **options)


def _planned(session: Session, resolved: Resolved, fates: Fates) -> list[PlannedStep]:
    """The steps that the job would have, in order; a step that has two names is paid for once."""
    distill, of_steps = _distillation(session, resolved), resolved.of_steps()
    datasets = _datasets(session, resolved)
    by_step = {dataset.step_key: dataset for dataset in datasets.values()}
    main, paid = session.get_one(Dataset, resolved.meaning["dataset_id"]), set[str]()
    steps = []
    for planned in resolved.plan:
        if fates.row(planned.key) is None and planned.key not in fates.new:
            continue
        state: Literal["cached", "shared", "new"] = (
            "new" if planned.key in fates.new else "cached" if planned.key in fates.done else "shared"
        )
        size = 0
        if state == "new" and planned.key not in paid:
            own = of_steps.get(planned.key)
            read = catalogue.facts(by_step.get(planned.key) or (main if own is None else datasets[own.dataset]))
            size = step_bytes(planned.kind, planned.params, own or distill, read.num_images, read.image_shape)
            paid.add(planned.key)
        inputs = list(dict.fromkeys(name for names in planned.inputs.values() for name in names))
        fields = {"name": planned.name, "kind": planned.kind, "queue": planned.queue, "key": planned.key}
        steps.append(PlannedStep(**fields, state=state, inputs=inputs, disk_bytes=size))
    return steps


def _distillation(session: Session, resolved: Resolved) -> DistillSpec:
    if isinstance(resolved.spec, DistillSpec):
        return resolved.spec
    if isinstance(resolved.spec, ObserveSpec):
        return as_distillation(resolved.spec)
    if isinstance(resolved.spec, SweepSpec):
        return next(iter(resolved.spec.variants.values()))
    origin = session.get_one(Job, session.get_one(Result, resolved.spec.synthetic_set).job_id)
    return DistillSpec.model_validate({**origin.spec, "preset": None})


def _datasets(session: Session, resolved: Resolved) -> dict[str, Dataset]:
    """The datasets that the spec names, by those names."""
    names = resolved.meaning["datasets"]
    rows = {row.id: row for row in session.scalars(select(Dataset).where(Dataset.id.in_(names.values())))}
    return {ref: rows[dataset_id] for ref, dataset_id in names.items()}
