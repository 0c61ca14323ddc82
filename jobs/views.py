"""What there is to know, for readers: every function takes a session and answers with the shapes of `jobs.bodies`."""

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import catalogue
from jobs.bodies import (
    ArtifactView,
    DatasetView,
    Error,
    EventView,
    JobView,
    ObservationView,
    Page,
    Progress,
    Queue,
    ReportView,
    Series,
    StepView,
    SyntheticSetView,
)
from jobs.errors import Gone, NotFound
from jobs.job_views import events, job, jobs, require, some
from jobs.models import Artifact, Dataset, JobStep, Result, Step
from jobs.pages import page

__all__ = [
    "ArtifactView",
    "DatasetView",
    "Error",
    "EventView",
    "JobView",
    "ObservationView",
    "Page",
    "Progress",
    "Queue",
    "ReportView",
    "Series",
    "StepView",
    "SyntheticSetView",
    "artifact",
    "artifacts",
    "dataset",
    "dataset_file",
    "datasets",
    "events",
    "job",
    "job_file",
    "jobs",
    "observation",
    "report",
    "require",
    "some",
    "synthetic_set",
    "synthetic_sets",
    "there",
]


def artifacts(session: Session, job_id: str) -> list[ArtifactView]:
    """The files of a job's steps, in the order of its plan; each once, under the first name its step has there."""
    query = (
        select(JobStep.name, Artifact)
        .join(Artifact, Artifact.step_id == JobStep.step_id)
        .where(JobStep.job_id == job_id)
        .order_by(JobStep.position, Artifact.name)
    )
    found: dict[str, ArtifactView] = {}
    for step, row in session.execute(query):
        found.setdefault(row.id, _artifact_view(row, step))
    return list(found.values())


def artifact(session: Session, artifact_id: str) -> ArtifactView:
    """One file. Raises `NotFound`."""
    row = session.get(Artifact, artifact_id)
    if row is None:
        raise NotFound("artifact", artifact_id)
    return _artifact_view(row, None)


def job_file(session: Session, job_id: str, name: str) -> ArtifactView:
    """The file called `name` of a job's steps; of the latest step in the plan that has one. Raises `NotFound`, `Gone`."""
    query = (
        select(JobStep.name, Artifact)
        .join(Artifact, Artifact.step_id == JobStep.step_id)
        .where(JobStep.job_id == job_id, Artifact.name == name)
        .order_by(JobStep.position.desc())
    )
    found = session.execute(query).first()
    if found is None:
        raise NotFound("file", name, f"GET /jobs/{job_id}/artifacts lists what there is")
    return there(_artifact_view(found[1], found[0]))


def there(file: ArtifactView) -> ArtifactView:
    """The same. Raises `Gone` if only the record of it is left."""
    if file.gone_at is not None:
        raise Gone(file.name, file.gone_at)
    return file


def _artifact_view(row: Artifact, step: str | None) -> ArtifactView:
    fields = {"id": row.id, "name": row.name, "kind": row.kind, "media_type": row.media_type, "sha256": row.sha256}
    return ArtifactView(**fields, size=row.size, step=step, created_at=row.created_at, gone_at=row.gone_at)


def dataset(session: Session, ref: str) -> DatasetView:
    """One dataset by id or name. Raises `UnknownDataset`."""
    (view,) = _dataset_views(session, [catalogue.find(session, ref)])
    return view


def datasets(session: Session, limit: int = 50, cursor: str | None = None) -> Page[DatasetView]:
    """Datasets: built-ins first, then uploads, newest first. Raises `BadCursor`."""
    rows, after = page(session, select(Dataset), Dataset.id, limit, cursor)
    return Page(data=_dataset_views(session, rows), has_more=after is not None, next_cursor=after)


def dataset_file(session: Session, ref: str, name: str) -> ArtifactView:
    """The file `name` of the step that read a dataset. Raises `UnknownDataset`, `Gone`, `NotFound` while no step has read it."""
    row = catalogue.find(session, ref)
    query = select(Artifact).join(Step, Step.id == Artifact.step_id).where(Step.key == row.step_key, Artifact.name == name)
    found = session.scalars(query.order_by(Artifact.id.desc())).first()
    if found is None:
        raise NotFound("file", name, f"dataset {row.name} has not been read yet; the first job that needs it reads it")
    return there(_artifact_view(found, None))


def _dataset_views(session: Session, rows: Collection[Dataset]) -> list[DatasetView]:
    states = catalogue.states(session, rows)
    return [
        DatasetView(
            id=row.id,
            name=row.name,
            state=states[row.id].state,
            origin=row.origin,
            digest=row.digest,
            num_images=row.num_images,
            num_classes=None if row.class_counts is None else len(row.class_counts),
            image_shape=row.image_shape,
            classes=row.classes,
            class_counts=row.class_counts,
            error=states[row.id].error,
            created_at=row.created_at,
        )
        for row in rows
    ]


def synthetic_set(session: Session, set_id: str) -> SyntheticSetView:
    """One synthetic set. Raises `NotFound`."""
    return _set_view(_result(session, set_id, "synthetic_set"))


def synthetic_sets(session: Session, limit: int = 50, cursor: str | None = None) -> Page[SyntheticSetView]:
    """Synthetic sets, newest first. Raises `BadCursor`."""
    rows, after = page(session, select(Result).where(Result.kind == "synthetic_set"), Result.id, limit, cursor)
    return Page(data=[_set_view(row) for row in rows], has_more=after is not None, next_cursor=after)


def report(session: Session, report_id: str) -> ReportView:
    """One report. Raises `NotFound`."""
    row = _result(session, report_id, "report")
    return ReportView(id=row.id, job_id=row.job_id, created_at=row.created_at, **row.info)


def observation(session: Session, observation_id: str) -> ObservationView:
    """One observation. Raises `NotFound`."""
    row = _result(session, observation_id, "observation")
    return ObservationView(id=row.id, job_id=row.job_id, dataset_id=row.dataset_id, created_at=row.created_at, **row.info)


def _result(session: Session, result_id: str, kind: str) -> Result:
    row = session.get(Result, result_id)
    if row is None or row.kind != kind:
        raise NotFound(kind.replace("_", " "), result_id)
    return row


def _set_view(row: Result) -> SyntheticSetView:
    return SyntheticSetView(id=row.id, job_id=row.job_id, dataset_id=row.dataset_id, created_at=row.created_at, **row.info)
