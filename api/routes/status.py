"""Is it alive, can it work, which version is it, and how is it doing."""

import asyncio
import platform
from importlib.metadata import version

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.responses import PlainTextResponse, Response

from api.measures import Watched
from api.problems import Refusal
from api.readiness import warnings
from ddcore.errors import Problem
from ddcore.plan import STEP_VERSION

router = APIRouter(tags=["service"])


class Ready(BaseModel):
    """Each part that the service stands on, and what keeps jobs waiting though they can be posted."""

    ready: bool
    parts: dict[str, str] = Field(examples=[{"database": "ok", "store": "ok", "redis": "ok"}])
    warnings: list[str] = Field(examples=[["3 steps wait on queue gpu, and no worker listens to it"]])


class Version(BaseModel):
    version: str
    python: str
    step_versions: dict[str, int] = Field(description="a step's results are reused only within its version")


@router.get("/healthz", response_class=PlainTextResponse, summary="The process answers")
async def healthz() -> str:
    return "ok"


@router.get(
    "/readyz",
    summary="Database, store and Redis can be used; and whether anything keeps jobs waiting",
    responses={503: {"description": "A part is missing; errors[] says which"}},
)
async def readyz(measures: Watched) -> Ready:
    parts, now, room = await asyncio.gather(measures.readiness.parts(), measures.now(), measures.room())
    if broken := [Problem((name,), said) for name, said in parts.items() if said != "ok"]:
        names = " and ".join(str(p.loc[0]) for p in broken)
        raise Refusal("not_ready", f"not ready: {names} cannot be used", broken, {"Retry-After": "5"})
    return Ready(ready=True, parts=parts, warnings=warnings(now, room) if now is not None else [])


@router.get("/version", summary="What runs here")
async def show_version() -> Version:
    return Version(version=version("potstill"), python=platform.python_version(), step_versions=STEP_VERSION)


@router.get("/metrics", response_class=PlainTextResponse, summary="Numbers for Prometheus")
async def metrics(measures: Watched) -> Response:
    return Response(await measures.exposition(), media_type=CONTENT_TYPE_LATEST)
