"""What happens in a job: events, as pages or as a stream, and the curves that its steps report."""

import time
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from api.event_stream import Look, stream
from api.parameters import Id
from api.schemas import EventPage, SeriesList
from api.service import Running, Service
from jobs import records, views

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])

PAGE = 200
ENDED = ("succeeded", "failed", "cancelled")
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
def list_events(
    service: Running,
    request: Request,
    job_id: Id,
    cursor: EventId = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = PAGE,
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, lt=2**63)] = None,
) -> Response | EventPage:
    if "text/event-stream" not in request.headers.get("accept", ""):
        with service.read() as session:
            views.job(session, job_id)
            found = views.events(session, job_id, after=cursor, limit=limit + 1)
        page = found[:limit]
        return EventPage(data=page, has_more=len(found) > limit, next_cursor=page[-1].id if page else None)
    after = cursor if last_event_id is None else last_event_id
    first = _look(service, job_id, after)
    if first.ended and not first.events and last_event_id is not None:
        return Response(status_code=204)
    look = partial(_look, service, job_id)
    events = stream(look, after, first.about, service.tail, service.pollers, service.stopping)
    return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM_HEADERS)


def _look(service: Service, job_id: str, after: int) -> Look:
    began = time.monotonic()
    # A session reads all of it as of one moment: so if the job has ended, its last event is on this page, or the page is full.
    with service.read() as session:
        job = views.job(session, job_id, service.recent)
        events = views.events(session, job_id, after=after, limit=PAGE)
    now = job.model_dump(mode="json", include={"id", "state", "phase", "progress", "queue", "error", "results"})
    return Look(
        events=[(e.id, e.type, e.model_dump(mode="json")) for e in events],
        now=now,
        ended=job.state in ENDED,
        more=len(events) == PAGE,
        about=(job.id, *(step.id for step in job.steps)),
        again=service.pace.again(time.monotonic() - began),
    )


@router.get("/metrics", summary="Curves that the steps report, thinned evenly")
def list_metrics(
    service: Running,
    job_id: Id,
    names: Annotated[str | None, Query(max_length=1000, description="separated by commas; all when absent", examples=["loss,lr"])] = None,
    max_points: Annotated[int, Query(ge=4, le=10_000, description="of each curve")] = 500,
) -> SeriesList:
    wanted = [name.strip() for name in names.split(",") if name.strip()] if names else None
    with service.read() as session:
        views.job(session, job_id)
        return SeriesList(data=records.metrics(session, job_id, wanted, max_points))
