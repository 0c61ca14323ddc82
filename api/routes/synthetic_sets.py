"""Synthetic sets: what distillation makes, to look at and to download."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.content import FILE_RESPONSES
from api.links import address
from api.parameters import Cursor, Id, Limit
from api.routes.artifacts import send_file_of
from api.schemas import SyntheticSetBody, SyntheticSetPage
from api.service import Running
from jobs import views
from jobs.bodies import SyntheticSetView

router = APIRouter(prefix="/synthetic-sets", tags=["results"])

Format = Literal["safetensors", "pt", "png", "parquet", "mtt"]
FILES: dict[Format, str] = {
    "safetensors": "synthetic.safetensors",
    "pt": "synthetic.pt",
    "png": "synthetic-png.zip",
    "parquet": "synthetic.parquet",
    "mtt": "synthetic-mtt.zip",
}


def _body(request: Request, one: SyntheticSetView) -> SyntheticSetBody:
    own = address(request, f"/synthetic-sets/{one.id}")
    links = {"self": own, "job": address(request, f"/jobs/{one.job_id}"), "preview": f"{own}/preview.png"}
    links |= {form: f"{own}/download?format={form}" for form in FILES}
    return SyntheticSetBody(**one.model_dump(), links=links)


@router.get("", summary="Synthetic sets, newest first")
def list_synthetic_sets(service: Running, request: Request, limit: Limit = 50, cursor: Cursor = None) -> SyntheticSetPage:
    with service.read() as session:
        page = views.synthetic_sets(session, limit, cursor)
    return SyntheticSetPage(data=[_body(request, one) for one in page.data], has_more=page.has_more, next_cursor=page.next_cursor)


@router.get("/{synthetic_set_id}", summary="One synthetic set")
def get_synthetic_set(service: Running, request: Request, synthetic_set_id: Id) -> SyntheticSetBody:
    with service.read() as session:
        return _body(request, views.synthetic_set(session, synthetic_set_id))


@router.get("/{synthetic_set_id}/preview.png", response_class=Response, responses=FILE_RESPONSES, summary="Its images as a grid")
def get_preview(service: Running, request: Request, synthetic_set_id: Id) -> Response:
    with service.read() as session:
        one = views.synthetic_set(session, synthetic_set_id)
    return send_file_of(service, request, one.job_id, "preview.png")


@router.head("/{synthetic_set_id}/download", response_class=Response, responses=FILE_RESPONSES, summary="Headers of the download")
@router.get("/{synthetic_set_id}/download", response_class=Response, responses=FILE_RESPONSES, summary="The set in the format you need")
def download(
    service: Running,
    request: Request,
    synthetic_set_id: Id,
    format: Annotated[Format, Query(description="mtt: the two files that trajectory-matching reference codes read")] = "safetensors",
) -> Response:
    with service.read() as session:
        one = views.synthetic_set(session, synthetic_set_id)
    return send_file_of(service, request, one.job_id, FILES[format])
