"""From what `jobs.views` tells to what the API answers: the same, with links."""

from fastapi import Request

from api.links import address, job_links
from api.schemas import ArtifactBody, JobBody
from api.service import Service
from jobs import views
from jobs.bodies import ArtifactView, JobView


def with_links(request: Request, job: JobView) -> JobBody:
    return JobBody(**job.model_dump(), links=job_links(request, job))


def job_body(service: Service, request: Request, job_id: str) -> JobBody:
    with service.read() as session:
        return with_links(request, views.job(session, job_id))


def artifact_body(request: Request, artifact: ArtifactView) -> ArtifactBody:
    own = address(request, f"/artifacts/{artifact.id}")
    return ArtifactBody(**artifact.model_dump(), links={"self": own, "content": f"{own}/content"})
