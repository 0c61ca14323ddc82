"""Is it alive, can it work, which version is it, and how is it doing."""

import platform
from collections.abc import Callable
from importlib.metadata import version

import redis
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import PlainTextResponse, Response

from api.problems import Refusal
from api.service import Running, Service
from ddcore.errors import Problem
from ddcore.plan import STEP_VERSION
from jobs import views
from jobs.errors import JobsError
from jobs.migrate import check_revision

router = APIRouter(tags=["service"])
PING_SECONDS = 2.0


class Ready(BaseModel):
    """Each part that the service stands on."""

    ready: bool
    parts: dict[str, str] = Field(examples=[{"database": "ok", "store": "ok", "redis": "ok"}])


class Version(BaseModel):
    version: str
    python: str
    step_versions: dict[str, int] = Field(description="a step's results are reused only within its version")


@router.get("/healthz", response_class=PlainTextResponse, summary="The process answers")
async def healthz() -> str:
    return "ok"


@router.get(
    "/readyz",
    summary="Database, store and Redis can be reached",
    responses={503: {"description": "A part is missing; errors[] says which"}},
)
def readyz(service: Running) -> Ready:
    checks: dict[str, Callable[[Service], None]] = {"database": _database, "store": _store, "redis": _redis}
    parts = {}
    for name, check in checks.items():
        try:
            check(service)
            parts[name] = "ok"
        except (SQLAlchemyError, JobsError, OSError, redis.RedisError) as error:
            parts[name] = str(error).splitlines()[0] or type(error).__name__
    if broken := [Problem((name,), said) for name, said in parts.items() if said != "ok"]:
        names = " and ".join(str(p.loc[0]) for p in broken)
        raise Refusal("not_ready", f"not ready: {names} cannot be used", broken, {"Retry-After": "5"})
    return Ready(ready=True, parts=parts)


def _database(service: Service) -> None:
    check_revision(service.engine)


def _store(service: Service) -> None:
    service.store.check()


def _redis(service: Service) -> None:
    with redis.Redis.from_url(service.settings.redis_url, socket_timeout=PING_SECONDS, socket_connect_timeout=PING_SECONDS) as client:
        client.ping()


@router.get("/version", summary="What runs here")
async def show_version() -> Version:
    return Version(version=version("potstill"), python=platform.python_version(), step_versions=STEP_VERSION)


@router.get("/metrics", response_class=PlainTextResponse, summary="Counters for Prometheus")
def metrics(service: Running, request: Request) -> Response:
    work = CollectorRegistry()
    with service.read() as session:
        for name, states in views.counts(session).items():
            gauge = Gauge(f"potstill_{name}", f"How many {name} are in each state", ["state"], registry=work)
            for state, number in states.items():
                gauge.labels(state).set(number)
    return Response(generate_latest(request.app.state.registry) + generate_latest(work), media_type=CONTENT_TYPE_LATEST)
