"""Reports: downstream numbers of a synthetic set beside honest baselines."""

import json

from fastapi import APIRouter, Request

from api.links import address
from api.parameters import Id
from api.schemas import ReportBody
from api.service import Running
from jobs import views

router = APIRouter(prefix="/reports", tags=["results"])


@router.get("/{report_id}", summary="One report: every arm's mean, deviation, n and interval, and paired differences")
def get_report(service: Running, request: Request, report_id: Id) -> ReportBody:
    with service.read() as session:
        view = views.report(session, report_id)
        files = {name: views.job_file(session, view.job_id, f"report.{name}") for name in ("json", "md")}
    contents = json.loads(service.store.path(files["json"].sha256).read_bytes())
    links = {
        "self": address(request, f"/reports/{view.id}"),
        "job": address(request, f"/jobs/{view.job_id}"),
        "synthetic_set": address(request, f"/synthetic-sets/{view.synthetic_set_id}"),
        "json": address(request, f"/artifacts/{files['json'].id}/content"),
        "table": address(request, f"/artifacts/{files['md'].id}/content"),
        "plot": address(request, f"/jobs/{view.job_id}/plots/comparison.png"),
    }
    return ReportBody(**view.model_dump(), report=contents, links=links)
