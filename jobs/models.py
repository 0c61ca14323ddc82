"""The tables. SQL is the truth about every job; what Redis holds can be lost."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

JOB_STATES = ("queued", "running", "cancelling", "succeeded", "failed", "cancelled")
STEP_STATES = ("blocked", "ready", "running", "succeeded", "failed", "cancelled")
QUEUES = ("gpu", "cpu", "io")
LIVE_JOB = ("queued", "running")
LIVE_STEP = ("blocked", "ready", "running")

Json = dict[str, Any]
Big = BigInteger()
Counter = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers rows by itself only in an INTEGER column


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, always aware and in UTC, also on SQLite (which keeps no zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a time zone")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Names every constraint, so that a migration can drop it on both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        datetime: UtcDateTime(),
        Json: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
        str: String(),
    }


class Dataset(Base):
    """An immutable set of images. `digest` names its source; `step_key` is the key of the step that reads it into a tensor file."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    origin: Mapped[str]  # builtin | upload
    source: Mapped[Json]  # {"builtin": name} | {"archive": sha256}
    num_images: Mapped[int]
    image_shape: Mapped[list[Any]]  # channels, height, width
    classes: Mapped[list[Any] | None]  # names, in label order; None without labels
    class_counts: Mapped[list[Any] | None]
    step_key: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[datetime]

    __table_args__ = (Index("ix_datasets_name_id", "name", "id"),)


class Job(Base):
    """What a user posted. `resolved` pins what the names in `spec` meant: {"datasets": {ref: id}, "checkpoint": sha256 | None}.

    pinned: the files of its steps are kept, however long nobody uses them.
    owner is a name by which workers are divided fairly, as the client gave it. It proves nothing: there is no login.
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]  # distill | evaluate | observe | sweep
    state: Mapped[str]  # JOB_STATES
    spec: Mapped[Json]
    resolved: Mapped[Json]
    priority: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str] = mapped_column(default="", server_default="")
    pinned: Mapped[bool] = mapped_column(default=False, server_default=false())
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    error_code: Mapped[str | None]
    error_detail: Mapped[str | None] = mapped_column(Text)
    error_hint: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_jobs_state_id", "state", "id"),
        Index("ix_jobs_kind_id", "kind", "id"),
        Index("ix_jobs_owner_id", "owner", "id"),
    )


class JobLabel(Base):
    """A word that a user filed a job under."""

    __tablename__ = "job_labels"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)

    __table_args__ = (Index("ix_job_labels_label_job_id", "label", "job_id"),)


_COUNTS = text("state NOT IN ('failed', 'cancelled') AND lost_at IS NULL")
_RUNNING = text("state = 'running'")


class Step(Base):
    """One unit of work, shared by every job that needs its key.

    attempt is the fencing token: it rises with every claim, and whoever writes must hold the current one. waiting counts the inputs
    that are not there yet. priority and owner are those of the most urgent live job that needs it, of the first posted among equals.
    turn is how many steps of its job run, or wait before it, on its queue: the smaller, the sooner. shape names steps that take about
    as long: of equal params but for seeds. engine names the engine that planned it, and only workers of the same one run it. lost_at
    marks a succeeded step whose files have vanished: it stays as history and is not reused.
    """

    __tablename__ = "steps"

    id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    queue: Mapped[str]
    params: Mapped[Json]
    state: Mapped[str]  # STEP_STATES
    priority: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str] = mapped_column(default="", server_default="")
    shape: Mapped[str] = mapped_column(default="", server_default="")  # empty: planned before shapes were noted
    turn: Mapped[int] = mapped_column(default=0, server_default="0")
    engine: Mapped[str] = mapped_column(default="", server_default="")  # empty: planned before engines were noted
    waiting: Mapped[int] = mapped_column(default=0)
    attempt: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int]
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    done: Mapped[int | None] = mapped_column(Big)
    total: Mapped[int | None] = mapped_column(Big)
    unit: Mapped[str | None]
    note: Mapped[str | None] = mapped_column(Text)
    rate: Mapped[float | None]  # units per second, smoothed
    progress_at: Mapped[datetime | None]
    error_code: Mapped[str | None]
    error_detail: Mapped[str | None] = mapped_column(Text)
    error_hint: Mapped[str | None] = mapped_column(Text)
    summary: Mapped[Json | None]
    rings: Mapped[int] = mapped_column(default=0)  # doorbells sent since it became ready
    rung_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    lost_at: Mapped[datetime | None]

    __table_args__ = (
        # At most one step of a key is under way or done: two jobs that need it share it.
        Index("uq_steps_key_counting", "key", unique=True, sqlite_where=_COUNTS, postgresql_where=_COUNTS),
        Index("ix_steps_state_lease_until", "state", "lease_until"),
        Index("ix_steps_claim_order", "state", "queue", "engine", "priority", "owner", "turn", "ready_at", "id"),
        Index("ix_steps_running", "queue", "owner", sqlite_where=_RUNNING, postgresql_where=_RUNNING),
        Index("ix_steps_owner_queue_started_at", "owner", "queue", "started_at"),  # when an owner was served last
        Index("ix_steps_shape_state_finished_at", "shape", "state", "finished_at"),  # how long the latest of a shape took
        Index("ix_steps_queue_state_finished_at", "queue", "state", "finished_at"),  # how long the latest on a queue took
    )


class StepInput(Base):
    """An edge: `step_id` reads the files of `needs_id` in `role`, at `position` among that role's inputs."""

    __tablename__ = "step_inputs"

    step_id: Mapped[str] = mapped_column(ForeignKey("steps.id"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    needs_id: Mapped[str] = mapped_column(ForeignKey("steps.id"), index=True)


class JobStep(Base):
    """A step as a job sees it. Two names of one job may be the same step. cached: it was done before the job was posted."""

    __tablename__ = "job_steps"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    step_id: Mapped[str] = mapped_column(ForeignKey("steps.id"), index=True)
    position: Mapped[int]
    cached: Mapped[bool]


class Artifact(Base):
    """One immutable file in the store: what a step left behind, or (without a step) what a user sent.

    gone_at: since when the row no longer keeps the file, which outlived its time (`jobs.retention`).
    """

    __tablename__ = "artifacts"

    id: Mapped[str] = mapped_column(primary_key=True)
    step_id: Mapped[str | None] = mapped_column(ForeignKey("steps.id"))
    name: Mapped[str]
    kind: Mapped[str]
    media_type: Mapped[str]
    sha256: Mapped[str] = mapped_column(index=True)
    size: Mapped[int] = mapped_column(Big)
    created_at: Mapped[datetime]
    gone_at: Mapped[datetime | None]

    __table_args__ = (UniqueConstraint("step_id", "name"),)


class Condemned(Base):
    """A file in the store that may be deleted, if still no row names it then; doomed_at: since when it is too late to spare it.

    `jobs.condemned` has the rules.
    """

    __tablename__ = "condemned"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(Big)
    at: Mapped[datetime] = mapped_column(index=True)
    doomed_at: Mapped[datetime | None]


class Event(Base):
    """Something that happened to a job or to a step. Written only under the graph lock, so ids rise in the order of commits."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    step_id: Mapped[str | None] = mapped_column(ForeignKey("steps.id"))
    type: Mapped[str]
    data: Mapped[Json]
    at: Mapped[datetime]

    __table_args__ = (
        Index("ix_events_job_id_id", "job_id", "id"),
        Index("ix_events_step_id_id", "step_id", "id"),
        {"sqlite_autoincrement": True},
    )


class Metric(Base):
    """One point of a curve of a step; value is None where it was not finite."""

    __tablename__ = "metrics"

    step_id: Mapped[str] = mapped_column(ForeignKey("steps.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    x: Mapped[float] = mapped_column(primary_key=True)
    value: Mapped[float | None]
    attempt: Mapped[int]


class Doorbell(Base):
    """A message that is still to be sent: "this step is ready". Sending it twice, late or never harms nobody."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    step_id: Mapped[str] = mapped_column(ForeignKey("steps.id"), index=True)
    created_at: Mapped[datetime]

    __table_args__ = ({"sqlite_autoincrement": True},)


class Worker(Base):
    """A process that runs one step at a time, while it is there; `alive_until` is how long it may be counted on without another word."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    queues: Mapped[list[Any]]
    device: Mapped[str | None]  # as torch calls it; None until it was asked
    memory: Mapped[int | None] = mapped_column(Big)  # of the device, in bytes
    engine: Mapped[str]
    version: Mapped[str]
    started_at: Mapped[datetime]
    last_seen: Mapped[datetime]
    alive_until: Mapped[datetime]


class Idempotency(Base):
    """A client's key, what it was used for, and the job that it made."""

    __tablename__ = "idempotency"

    key: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[str]  # sha256 of kind, spec, labels, priority and owner, or of the job that was retried or cloned
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime]


class Result(Base):
    """What a job was for: a synthetic set (`syn_…`), a report (`rep_…`) or an observation (`obs_…`), with the facts that a list shows."""

    __tablename__ = "results"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]  # synthetic_set | report | observation
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    step_id: Mapped[str] = mapped_column(ForeignKey("steps.id"))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    info: Mapped[Json]
    created_at: Mapped[datetime]

    __table_args__ = (Index("ix_results_kind_id", "kind", "id"),)
