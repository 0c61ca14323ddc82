"""From what `jobs.views` tells to what the API answers: the same, with links."""

from anyio import from_thread
from fastapi import Request

from api.links import address, job_links
from api.schemas import ArtifactBody, JobBody
from api.service import Service
from jobs.bodies import ArtifactView, JobView


def with_links(request: Request, job: JobView, poll_after_seconds: float | None = None) -> JobBody:
    return JobBody.model_construct(**dict(job), links=job_links(request, job), poll_after_seconds=poll_after_seconds)


async def job_now(service: Service, request: Request, job_id: str) -> JobBody:
    """The job as of now, and when to ask for it again."""
    seen = await service.looks.job(job_id)
    return with_links(request, seen.job, seen.again)


def job_body(service: Service, request: Request, job_id: str) -> JobBody:
    """`job_now`, for the threads in which routes run."""
    return from_thread.run(job_now, service, request, job_id)


def artifact_body(request: Request, artifact: ArtifactView) -> ArtifactBody:
    own = address(request, f"/artifacts/{artifact.id}")
    return ArtifactBody(**artifact.model_dump(), links={"self": own, "content": f"{own}/content"})
