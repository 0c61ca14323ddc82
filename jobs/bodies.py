"""What a reader is told: plain, frozen shapes, ready for JSON. `jobs.views` fills them."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


class Body(BaseModel):
    """Base of all shapes: frozen."""

    model_config = ConfigDict(frozen=True)


class Error(Body):
    """Why something failed. code is one of `ddcore.errors.CODES`."""

    code: str
    detail: str
    hint: str


class Progress(Body):
    """How far something is; None where that is not known.

    Of a step: in its own unit, and the time to its end at its present rate. Of a job: unit "steps", counting only those that were not
    done before (unless all were), all with equal weight, running ones by their done fraction; and the time to the end of the steps
    that run now: what comes after them is not in it.
    """

    done: float
    total: float | None
    unit: str
    eta_seconds: float | None


class Queue(Body):
    """Where a job that waits for a worker stands: `ahead` steps are claimed first, so its `position` is one more.

    As of a few seconds ago, where many ask; it changes when others post, change or end something.
    """

    position: int
    ahead: int


class Eta(Body):
    """How long a job will still take: from the 10th to the 90th percentile of past runs of steps like its own.

    Of the same kind and settings, but for seeds, on inputs like theirs; runs: how many there were, of the step with the fewest. The
    workers that are there now are taken to stay. What is ahead in the queue counts until the job's next step begins; from then on the
    job is taken to get, at worst, the workers that it has now and those that are idle. Taking turns with other jobs that wait, or are
    posted later, is not in it: where n of them share one worker, it may take n times as long.
    """

    low_seconds: float
    high_seconds: float
    runs: int


class StepView(Body):
    """A step as one job sees it; shared steps look the same in every job. cached: done before this job was posted."""

    id: str
    name: str
    kind: str
    state: str
    attempt: int
    cached: bool
    started_at: datetime | None
    finished_at: datetime | None
    progress: Progress | None
    note: str | None
    error: Error | None


class JobView(Body):
    """A job, as of now."""

    id: str
    kind: str
    state: Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
    phase: str = Field(description="what happens now, in words", examples=["matching trajectories: 1,200 of 5,000 iterations"])
    spec: dict[str, Any]
    labels: list[str]
    pinned: bool = Field(False, description="whether the files of all its steps are kept, however long nobody uses them")
    priority: int
    owner: str = Field(description="the name for which workers are divided fairly, as the client gave it; no identity")
    parent_id: str | None = Field(description="the job that this one retries or clones")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: Progress
    queue: Queue | None = Field(description="while nothing of the job runs; not in lists")
    eta: Eta | None = Field(description="null if a step that is left has no past run to compare with, or no worker; and in lists")
    steps: list[StepView]
    results: dict[str, Any] = Field(
        description="`synthetic_set`, `report` or `observation`: an id; `summaries`: facts of each finished step by its name"
    )
    error: Error | None


class Page(Body, Generic[T]):
    """One page of a list, newest first."""

    data: list[T]
    has_more: bool
    next_cursor: str | None


class EventView(Body):
    """Something that happened to a job, or to one of its steps (`step` is its name). `id` rises; ask for those after the last one seen."""

    id: int
    type: str
    step: str | None
    data: dict[str, Any]
    at: datetime


class ArtifactView(Body):
    """One immutable file. step: the name of the step that made it, in the job that was asked for."""

    id: str
    name: str
    kind: str
    media_type: str
    sha256: str
    size: int = Field(description="bytes")
    step: str | None
    created_at: datetime
    gone_at: datetime | None = Field(None, description="since when there is no file any more: nobody had used it for long")


class Series(Body):
    """One curve of one step of a job: points [x, value] by rising x; a value that was not finite is null."""

    step: str
    name: str
    points: list[tuple[float, float | None]]


class DatasetView(Body):
    """A dataset: built in, or uploaded. `available`: known, and read by the first job that needs it."""

    id: str
    name: str
    state: Literal["available", "validating", "ready", "rejected"]
    origin: Literal["builtin", "upload"]
    digest: str
    num_images: int
    num_classes: int | None
    image_shape: tuple[int, int, int] = Field(description="channels, height, width")
    classes: list[str] | None
    class_counts: list[int] | None
    error: Error | None
    created_at: datetime


class WorkerView(Body):
    """A process that runs one step at a time. `lost`: it fell silent without saying goodbye."""

    name: str
    state: Literal["idle", "busy", "lost"]
    host: str
    pid: int
    queues: list[str]
    device: str | None = Field(description="what it computes on, as torch calls it; null until it was asked")
    memory: int | None = Field(description="of the device, in bytes")
    engine: str = Field(description="it runs only steps that were planned by the engine of the same name")
    version: str
    started_at: datetime
    last_seen: datetime
    step: str | None = Field(description="what it runs")


class QueueView(Body):
    """What waits on one queue, and for whom."""

    name: str
    ready: int = Field(description="steps that wait for a worker")
    running: int
    oldest_seconds: float | None = Field(description="how long the oldest of the waiting has waited; null if none waits")
    workers: list[str] = Field(description="who listens")
    other_engines: list[str] = Field(description="engines that waiting steps need and none of these workers runs; empty if nobody listens")


class SyntheticSetView(Body):
    """All that is needed to pre-train: images, targets, a learning rate."""

    id: str
    job_id: str
    method: str
    num_images: int
    image_shape: tuple[int, int, int]
    target_dim: int | None
    learned_lr: float | None = Field(description="the geometric mean where layers have rates of their own")
    learned_lrs: list[float] | None = Field(None, description="the rate of each layer of the student, if they differ; in order")
    dataset_id: str
    created_at: datetime


class ObservationView(Body):
    """What was seen of a recorded run: its headline numbers."""

    id: str
    job_id: str
    dataset_id: str
    created_at: datetime
    summary: dict[str, Any]


class ReportView(Body):
    """Where the downstream numbers of a synthetic set are, or the ranking of a sweep's variants, and their summary."""

    id: str
    job_id: str
    synthetic_set_id: str | None = Field(description="null of a sweep, which ranks many")
    created_at: datetime
    summary: dict[str, Any]
