"""Files: of a job, one by one, and checkpoints that a user brings."""

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from api.answers import artifact_body
from api.content import FILE_RESPONSES, file_response
from api.links import address
from api.parameters import Id
from api.schemas import ArtifactBody, ArtifactList
from api.service import Running, Service
from api.uploads import receive_upload, upload_form
from jobs import checkpoints, views
from jobs.bodies import ArtifactView

router = APIRouter(tags=["files"])

INLINE = ("image/", "application/json", "text/markdown", "text/plain")  # what a browser may show rather than save


def send(service: Service, request: Request, artifact: ArtifactView) -> Response:
    """The bytes of one artifact."""
    service.store.size(views.there(artifact).sha256)  # absent: refuse now, before the status line
    return file_response(request, service.store, artifact, inline=artifact.media_type.startswith(INLINE))


def send_file_of(service: Service, request: Request, job_id: str, name: str) -> Response:
    """The file `name` that a job's steps left."""
    with service.read() as session:
        artifact = views.job_file(session, job_id, name)
    return send(service, request, artifact)


@router.get("/jobs/{job_id}/artifacts", summary="Every file that a job's steps left")
def list_artifacts(service: Running, request: Request, job_id: Id) -> ArtifactList:
    with service.read() as session:
        views.require(session, job_id)
        found = views.artifacts(session, job_id)
    return ArtifactList(data=[artifact_body(request, one) for one in found])


@router.get("/artifacts/{artifact_id}", summary="One file: name, kind, size, sha256")
def get_artifact(service: Running, request: Request, artifact_id: Id) -> ArtifactBody:
    with service.read() as session:
        return artifact_body(request, views.artifact(session, artifact_id))


@router.head("/artifacts/{artifact_id}/content", response_class=Response, responses=FILE_RESPONSES, summary="Headers of the file")
@router.get("/artifacts/{artifact_id}/content", response_class=Response, responses=FILE_RESPONSES, summary="The file")
def get_content(service: Running, request: Request, artifact_id: Id) -> Response:
    with service.read() as session:
        artifact = views.artifact(session, artifact_id)
    return send(service, request, artifact)


@router.post(
    "/artifacts",
    status_code=201,
    response_model=ArtifactBody,
    summary="Bring a checkpoint (safetensors) for a teacher with ssl: given",
    openapi_extra=upload_form("a safetensors file"),
)
async def upload_checkpoint(service: Running, request: Request, response: Response) -> Any:
    folder = service.settings.home / "uploads"
    async with receive_upload(request, folder, service.settings.max_upload_bytes, ("name",)) as upload:
        # A spec that names a checkpoint finds it by this ending.
        name = (upload.fields.get("name") or upload.filename).removesuffix(".safetensors") + ".safetensors"

        def add() -> ArtifactView:
            service.require_room(upload.path.stat().st_size)
            blob = checkpoints.read_checkpoint(service.store, upload.path, name)
            made = service.name(blob, upload.path, name, lambda session: checkpoints.add_checkpoint(session, blob, name).id)
            with service.read() as session:
                return views.artifact(session, made)

        artifact = await run_in_threadpool(add)
    response.headers["Location"] = address(request, f"/artifacts/{artifact.id}")
    return artifact_body(request, artifact)
