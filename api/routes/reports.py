"""Reports: downstream numbers of a synthetic set beside honest baselines, and rankings of a sweep's variants."""

import json

from fastapi import APIRouter, Request

from api.links import address
from api.parameters import Id
from api.schemas import ReportBody
from api.service import Running
from jobs import views

router = APIRouter(prefix="/reports", tags=["results"])


@router.get("/{report_id}", summary="One report: every arm's or variant's mean, deviation, n and interval, and paired differences")
def get_report(service: Running, request: Request, report_id: Id) -> ReportBody:
    with service.read() as session:
        view = views.report(session, report_id)
        name, plot = ("ranking", "ranking") if view.synthetic_set_id is None else ("report", "comparison")
        files = {form: views.job_file(session, view.job_id, f"{name}.{form}") for form in ("json", "md")}
    contents = json.loads(service.store.read(files["json"].sha256))
    links = {
        "self": address(request, f"/reports/{view.id}"),
        "job": address(request, f"/jobs/{view.job_id}"),
        "json": address(request, f"/artifacts/{files['json'].id}/content"),
        "table": address(request, f"/artifacts/{files['md'].id}/content"),
        "plot": address(request, f"/jobs/{view.job_id}/plots/{plot}.png"),
    }
    if view.synthetic_set_id is not None:
        links["synthetic_set"] = address(request, f"/synthetic-sets/{view.synthetic_set_id}")
    return ReportBody(**view.model_dump(), report=contents, links=links)
