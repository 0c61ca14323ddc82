"""Pictures of a job: trajectories, distances, losses, images; each as PNG, SVG and the numbers behind it."""

from pathlib import PurePath
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from api.content import FILE_RESPONSES
from api.links import address
from api.parameters import Id
from api.routes.artifacts import send
from api.schemas import PlotBody, PlotList
from api.service import Running
from jobs import views
from jobs.errors import NotFound

router = APIRouter(prefix="/jobs/{job_id}/plots", tags=["jobs"])

PlotName = Annotated[str, Path(max_length=100, pattern=r"^[A-Za-z0-9_-]+$", examples=["expert_trajectories"])]


@router.get("", summary="The pictures that there are by now")
def list_plots(service: Running, request: Request, job_id: Id) -> PlotList:
    with service.read() as session:
        views.require(session, job_id)
        found = [one for one in views.artifacts(session, job_id) if one.kind == "plot"]
    plots: dict[str, PlotBody] = {}
    for one in found:
        name, form = PurePath(one.name).stem, PurePath(one.name).suffix[1:]
        plot = plots.setdefault(name, PlotBody(name=name, step=one.step, links={}))
        plot.links[form] = address(request, f"/jobs/{job_id}/plots/{one.name}")
    return PlotList(data=list(plots.values()))


@router.get("/{name}.{form}", response_class=Response, responses=FILE_RESPONSES, summary="One picture")
def get_plot(service: Running, request: Request, job_id: Id, name: PlotName, form: Literal["png", "svg", "json"]) -> Response:
    with service.read() as session:
        views.require(session, job_id)
        found = [one for one in views.artifacts(session, job_id) if one.kind == "plot" and one.name == f"{name}.{form}"]
    if not found:
        raise NotFound("plot", f"{name}.{form}", f"GET /jobs/{job_id}/plots lists those that there are by now")
    return send(service, request, found[0])
