"""Jobs: find them, look at one, cancel it, try again, do another like it."""

from collections.abc import Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.answers import job_body, job_now, with_links
from api.bodies import ChangeBody, CloneBody
from api.parameters import Cursor, Id, IdempotencyKey, Kind, Limit, State
from api.routes.submissions import accepted
from api.schemas import JobBody, JobPage
from api.service import Running, Service
from jobs import cancel, change, create, views
from jobs.models import Job

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get("", summary="Jobs, newest first")
def list_jobs(
    service: Running,
    request: Request,
    kind: Annotated[Kind | None, Query()] = None,
    state: Annotated[State | None, Query()] = None,
    label: Annotated[str | None, Query(max_length=63, pattern=r"^[^\x00-\x1f]+$")] = None,
    owner: Annotated[str | None, Query(max_length=63, pattern=r"^[^\x00-\x1f]*$", description="empty: those without an owner")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> JobPage:
    with service.read() as session:
        page = views.jobs(session, kind=kind, state=state, label=label, owner=owner, limit=limit, cursor=cursor)
    return JobPage(data=[with_links(request, job) for job in page.data], has_more=page.has_more, next_cursor=page.next_cursor)


@router.get("/{job_id}", response_model=JobBody, summary="One job: state, progress, place in the queue, steps, results")
async def get_job(service: Running, request: Request, job_id: Id) -> Response:
    # Written here, and not by the framework, which would take as long for it as the database took to find the job.
    body = await job_now(service, request, job_id)
    return Response(body.model_dump_json(), media_type="application/json")


@router.patch("/{job_id}", summary="Change a job's priority (from the next claim on) or its labels, or pin it")
def change_job(service: Running, request: Request, job_id: Id, body: ChangeBody) -> JobBody:
    service.write(lambda session: change.change(session, job_id, priority=body.priority, labels=body.labels, pinned=body.pinned))
    return job_body(service, request, job_id)


@router.post("/{job_id}/cancel", summary="Stop a job; steps that other jobs need go on")
def cancel_job(service: Running, request: Request, job_id: Id) -> JobBody:
    service.write(lambda session: cancel.cancel(session, job_id))
    return job_body(service, request, job_id)


@router.post("/{job_id}/retry", status_code=202, summary="Post a failed or cancelled job again; what it had finished is kept")
def retry_job(service: Running, request: Request, response: Response, job_id: Id, idempotency_key: IdempotencyKey = None) -> JobBody:
    return _again(service, request, response, job_id, partial(create.retry, idempotency_key=idempotency_key))


@router.post("/{job_id}/clone", status_code=202, summary="Post a job again, whatever became of it; what it had finished is kept")
def clone_job(
    service: Running,
    request: Request,
    response: Response,
    job_id: Id,
    body: CloneBody | None = None,
    idempotency_key: IdempotencyKey = None,
) -> JobBody:
    given = body or CloneBody()
    other = partial(create.clone, labels=given.labels, priority=given.priority, owner=given.owner, idempotency_key=idempotency_key)
    return _again(service, request, response, job_id, other)


def _again(service: Service, request: Request, response: Response, job_id: str, post: Callable[..., Job]) -> JobBody:
    """202, and the job that `post` makes after this one."""
    with service.read() as session:
        found = create.look_again(session, service.store, job_id)
    options = {"max_attempts": service.settings.max_attempts, "found": found}
    return accepted(service, request, response, service.write(lambda session: post(session, service.store, job_id, **options).id))
