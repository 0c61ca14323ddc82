"""Observations: how networks moved while they learned."""

from fastapi import APIRouter, Request

from api.links import address
from api.parameters import Id
from api.schemas import ObservationBody
from api.service import Running
from jobs import views

router = APIRouter(prefix="/observations", tags=["results"])


@router.get("/{observation_id}", summary="One observation: its headline numbers, and where its table and figures are")
def get_observation(service: Running, request: Request, observation_id: Id) -> ObservationBody:
    with service.read() as session:
        view = views.observation(session, observation_id)
        table = views.job_file(session, view.job_id, "observations.json")
    links = {
        "self": address(request, f"/observations/{view.id}"),
        "job": address(request, f"/jobs/{view.job_id}"),
        "json": address(request, f"/artifacts/{table.id}/content"),
        "plots": address(request, f"/jobs/{view.job_id}/plots"),
    }
    return ObservationBody(**view.model_dump(), links=links)
