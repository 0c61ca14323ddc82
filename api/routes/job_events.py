"""What happens in a job: events, as pages or as a stream, and the curves that its steps report."""

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import Response, StreamingResponse

from api.event_stream import KEEPALIVE_SECONDS, Look, stream
from api.parameters import Id
from api.schemas import EventPage, SeriesList
from api.service import Running, Service
from jobs import records, views
from jobs.bodies import EventView, JobView
from jobs.database import transact
from jobs.graph import JOB_ENDS

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])

PAGE = 200
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
EventId = Annotated[int, Query(ge=0, lt=2**63, description="only events after this id")]


@router.get(
    "/events",
    response_model=EventPage,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "A page; or a stream, when asked by Accept"},
        204: {"description": "Last-Event-ID was the last event of a job that has ended: do not reconnect"},
    },
    summary="What happened; with Accept: text/event-stream, what happens, until the job has ended",
)
async def list_events(
    service: Running,
    request: Request,
    job_id: Id,
    cursor: EventId = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = PAGE,
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, lt=2**63)] = None,
) -> Response | EventPage:
    job = (await service.looks.job(job_id)).job
    if "text/event-stream" not in request.headers.get("accept", ""):
        found = await _events(service, job, cursor, limit + 1)
        page = found[:limit]
        return EventPage(data=page, has_more=len(found) > limit, next_cursor=page[-1].id if page else None)
    if last_event_id is not None and job.state in JOB_ENDS and not await _events(service, job, last_event_id, 1):
        return Response(status_code=204)
    after = cursor if last_event_id is None else last_event_id
    about = (job.id, *(step.id for step in job.steps))
    events = stream(partial(_look, service, job_id), after, about, service.tail, service.stopping)
    return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM_HEADERS)


async def _events(service: Service, job: JobView, after: int, limit: int) -> list[EventView]:
    def read(session: Session) -> list[EventView]:
        return views.events(session, job, after=after, limit=limit)

    return await to_thread.run_sync(transact, service.look, read, limiter=service.pollers)


async def _look(service: Service, job_id: str, after: int, news: bool) -> Look:
    seen = await service.looks.job(job_id)
    ended = seen.again is None
    # Read after the job: so if it has ended, its last event is among them, or there are more to read.
    events = await _events(service, seen.job, after, PAGE) if news or ended else []
    now = seen.job.model_dump(mode="json", include={"id", "state", "phase", "progress", "queue", "error", "results"})
    told = [(event.id, event.type, event.model_dump(mode="json")) for event in events]
    return Look(told, now, ended, len(events) == PAGE, KEEPALIVE_SECONDS if seen.again is None else seen.again)


@router.get("/metrics", summary="Curves that the steps report, thinned evenly")
def list_metrics(
    service: Running,
    job_id: Id,
    names: Annotated[str | None, Query(max_length=1000, description="separated by commas; all when absent", examples=["loss,lr"])] = None,
    max_points: Annotated[int, Query(ge=4, le=10_000, description="of each curve")] = 500,
) -> SeriesList:
    wanted = [name.strip() for name in names.split(",") if name.strip()] if names else None
    with service.read() as session:
        views.require(session, job_id)
        return SeriesList(data=records.metrics(session, job_id, wanted, max_points))
