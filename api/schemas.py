"""Shapes of answers: what `jobs.views` tells, with links."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from api.examples import JOB
from jobs.bodies import ArtifactView, DatasetView, EventView, JobView, ObservationView, ReportView, Series, SyntheticSetView


class JobBody(JobView):
    """A job, as of now."""

    model_config = ConfigDict(json_schema_extra={"examples": [JOB]})

    links: dict[str, str] = Field(
        description="addresses: self, events, metrics, artifacts, plots, clone; and cancel, retry, results when there are any"
    )
    poll_after_seconds: float | None = Field(
        description="ask for the job again no sooner: the more ask, the longer; null when it has ended, and in lists"
    )


class JobPage(BaseModel):
    data: list[JobBody]
    has_more: bool
    next_cursor: str | None


class DatasetBody(DatasetView):
    """A dataset: built in, or uploaded."""

    links: dict[str, str]


class DatasetPage(BaseModel):
    data: list[DatasetBody]
    has_more: bool
    next_cursor: str | None


class ArtifactBody(ArtifactView):
    """One immutable file."""

    links: dict[str, str]


class ArtifactList(BaseModel):
    data: list[ArtifactBody]


class EventPage(BaseModel):
    data: list[EventView]
    has_more: bool
    next_cursor: int | None = Field(description="the `cursor` of the next page")


class SeriesList(BaseModel):
    data: list[Series]


class PlotBody(BaseModel):
    """One picture, in the forms that exist."""

    name: str = Field(examples=["expert_trajectories"])
    step: str | None
    links: dict[str, str] = Field(examples=[{"png": "/jobs/job_…/plots/losses.png"}])


class PlotList(BaseModel):
    data: list[PlotBody]


class SyntheticSetBody(SyntheticSetView):
    """All that is needed to pre-train: images, targets, a learning rate."""

    links: dict[str, str]


class SyntheticSetPage(BaseModel):
    data: list[SyntheticSetBody]
    has_more: bool
    next_cursor: str | None


class ReportBody(ReportView):
    """Downstream numbers of a synthetic set beside its baselines, or of a sweep's variants beside each other."""

    report: dict[str, Any] = Field(description="means, deviations, intervals and paired differences, as in report.json or ranking.json")
    links: dict[str, str]


class ObservationBody(ObservationView):
    """What was seen of how networks moved: headline numbers here, the whole table and the figures behind links."""

    links: dict[str, str]
