"""From what `jobs.views` tells to what the API answers: the same, with links."""

import time

from fastapi import Request

from api.links import address, job_links
from api.schemas import ArtifactBody, JobBody
from api.service import Service
from jobs import views
from jobs.bodies import ArtifactView, JobView
from jobs.graph import JOB_ENDS


def with_links(request: Request, job: JobView, poll_after_seconds: float | None = None) -> JobBody:
    return JobBody.model_construct(**dict(job), links=job_links(request, job), poll_after_seconds=poll_after_seconds)


def job_body(service: Service, request: Request, job_id: str) -> JobBody:
    """The job as of now, and when to ask for it again."""
    began = time.monotonic()
    with service.read() as session:
        job = views.job(session, job_id, service.recent)
    again = None if job.state in JOB_ENDS else service.pace.again(time.monotonic() - began)
    return with_links(request, job, again)


def artifact_body(request: Request, artifact: ArtifactView) -> ArtifactBody:
    own = address(request, f"/artifacts/{artifact.id}")
    return ArtifactBody(**artifact.model_dump(), links={"self": own, "content": f"{own}/content"})
