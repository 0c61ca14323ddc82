"""Who runs steps, and what waits for them."""

from fastapi import APIRouter
from pydantic import BaseModel

from api.service import Running
from jobs import workers
from jobs.bodies import QueueView, WorkerView

router = APIRouter(tags=["service"])


class Workers(BaseModel):
    data: list[WorkerView]


class Queues(BaseModel):
    data: list[QueueView]


@router.get("/workers", summary="Who runs steps: where, on what device, of which version, since when, and which step now")
def list_workers(service: Running) -> Workers:
    with service.read() as session:
        return Workers(data=workers.workers(session))


@router.get("/queue", summary="Each queue: what waits and for how long, what runs, and who listens")
def list_queues(service: Running) -> Queues:
    with service.read() as session:
        return Queues(data=workers.queues(session))
