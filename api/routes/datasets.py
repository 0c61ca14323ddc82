"""Datasets: built-ins and uploads."""

from functools import partial
from pathlib import PurePath
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from api.content import FILE_RESPONSES
from api.links import address
from api.parameters import Cursor, Limit, Ref
from api.problems import Refusal, with_hint
from api.routes.artifacts import send
from api.schemas import DatasetBody, DatasetPage
from api.service import Running
from api.uploads import receive_upload, upload_form
from ddcore.errors import DdcoreError, Problem
from jobs import catalogue, views
from jobs.bodies import DatasetView

router = APIRouter(prefix="/datasets", tags=["datasets"])


def _body(request: Request, dataset: DatasetView) -> DatasetBody:
    own = address(request, f"/datasets/{dataset.id}")
    links = {"self": own} | ({"preview": f"{own}/preview.png"} if dataset.state == "ready" else {})
    return DatasetBody(**dataset.model_dump(), links=links)


@router.get("", summary="Built-in and uploaded datasets")
def list_datasets(service: Running, request: Request, limit: Limit = 50, cursor: Cursor = None) -> DatasetPage:
    with service.read() as session:
        page = views.datasets(session, limit, cursor)
    return DatasetPage(data=[_body(request, one) for one in page.data], has_more=page.has_more, next_cursor=page.next_cursor)


@router.post(
    "",
    status_code=201,
    response_model=DatasetBody,
    summary="Upload a zip of images: in class folders, or flat without labels",
    openapi_extra=upload_form("a zip of equally large PNG or JPEG images"),
)
async def upload_dataset(service: Running, request: Request, response: Response) -> Any:
    settings = service.settings
    async with receive_upload(request, settings.home / "uploads", settings.max_upload_bytes, ("name",)) as upload:
        name = upload.fields.get("name") or PurePath(upload.filename).stem

        def store_and_add() -> DatasetView:
            service.require_room(upload.path.stat().st_size)
            read = catalogue.read_upload(service.store, upload.path, settings.max_images)
            with service.read() as session:
                found = catalogue.look(session, service.store, read)
            add = partial(
                catalogue.add_upload, store=service.store, upload=read, name=name, max_attempts=settings.max_attempts, found=found
            )
            try:
                made = service.name(read.blob, upload.path, "", lambda session: add(session).id)
            except DdcoreError as error:  # the bytes were good: it is the name
                raise Refusal(error.code, with_hint(error), [Problem(("name",), error.detail, name, error.hint)]) from error
            with service.read() as session:
                return views.dataset(session, made)

        dataset = await run_in_threadpool(store_and_add)
    body = _body(request, dataset)
    response.headers["Location"] = body.links["self"]
    return body


@router.get("/{dataset}/preview.png", response_class=Response, responses=FILE_RESPONSES, summary="Some of its images as a grid")
def get_dataset_preview(service: Running, request: Request, dataset: Ref) -> Response:
    with service.read() as session:
        artifact = views.dataset_file(session, dataset, "preview.png")
    return send(service, request, artifact)


@router.get("/{dataset}", summary="One dataset, by id or by name")
def get_dataset(service: Running, request: Request, dataset: Ref) -> DatasetBody:
    with service.read() as session:
        return _body(request, views.dataset(session, dataset))
