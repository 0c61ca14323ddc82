"""The application: routes, refusals, documentation; `uvicorn api.app:create_app --factory` serves it."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import OperationalError, TimeoutError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.staticfiles import StaticFiles

from api import problems
from api.measures import watching
from api.middleware import Envelope
from api.query import only_known_parameters
from api.routes import (
    artifacts,
    catalogue,
    datasets,
    job_events,
    jobs,
    observations,
    pages,
    plots,
    reports,
    status,
    storage,
    submissions,
    synthetic_sets,
    workers,
)
from api.service import running
from api.startup import PlainRefusal
from ddcore.errors import DdcoreError
from jobs import logs
from jobs.errors import JobsError
from jobs.settings import Settings, get_settings

ROUTES = (
    submissions,
    jobs,
    job_events,
    plots,
    artifacts,
    synthetic_sets,
    reports,
    observations,
    datasets,
    catalogue,
    status,
    workers,
    storage,
    pages,
)

DESCRIPTION = """\
Distil a dataset into a few images on which an encoder can be pre-trained, and see what that costs in accuracy.

1. **POST /distill** with `{"preset": "smoke"}` answers at once with a job. (Try it out below: the example runs as it stands.)
2. **GET /jobs/{job_id}** shows its progress; **GET /jobs/{job_id}/events** streams it.
3. **GET /synthetic-sets** lists what came out, with pictures and downloads.
4. **POST /evaluate** compares it with baselines of the same size and the same targets; **GET /reports/{report_id}** has the table.

Every refusal is `application/problem+json` and names the fields that are wrong, what was given, and what is allowed.
"""

TAGS = [
    {"name": "work", "description": "Post a distillation or an evaluation."},
    {"name": "jobs", "description": "Watch what was posted, stop it, try again."},
    {"name": "results", "description": "Synthetic sets and reports."},
    {"name": "datasets", "description": "Built-ins, and yours."},
    {"name": "files", "description": "Everything that steps leave behind, by id; checkpoints that you bring."},
    {"name": "catalogue", "description": "What a spec may ask for."},
    {"name": "service", "description": "Health, version, counters."},
]

HANDLERS: dict[Any, Any] = {
    problems.Refusal: problems.on_refusal,
    RequestValidationError: problems.on_invalid,
    HTTPException: problems.on_http_exception,
    DdcoreError: problems.on_engine_error,
    JobsError: problems.on_jobs_error,
    OperationalError: problems.on_database_away,
    TimeoutError: problems.on_database_away,
    Exception: problems.on_crash,
}
PROBLEM_ANSWER: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "Refused: what is wrong, where, what was given, and what is allowed",
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
    }
}


class Potstill(FastAPI):
    """FastAPI, with the one shape of refusal among the schemas."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schema = super().openapi()
            own = problems.ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
            schema["components"]["schemas"] |= own.pop("$defs") | {"ProblemBody": own}
        return super().openapi()


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API of one installation. It opens the database when it starts to serve, not before.

    Without settings it is the application of this process: it has those of the environment, and the process logs as they say.
    """
    chosen = settings or get_settings()
    if settings is None:
        _set_up_logs(chosen)
    registry = CollectorRegistry()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(app, chosen), watching(app, chosen, registry):
            yield

    app = Potstill(
        title="potstill",
        version=version("potstill"),
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_tags=TAGS,
        lifespan=lifespan,
        middleware=[Middleware(PlainRefusal), Middleware(Envelope, max_upload_bytes=chosen.max_upload_bytes, registry=registry)],
        exception_handlers=HANDLERS,
        responses=PROBLEM_ANSWER,
        dependencies=[Depends(only_known_parameters)],
        generate_unique_id_function=_operation,
    )
    app.state.registry = registry
    for module in ROUTES:
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=pages.STATIC), name="static")
    return app


def _operation(route: APIRoute) -> str:
    return f"head_{route.name}" if "HEAD" in (route.methods or ()) else route.name


def _set_up_logs(settings: Settings) -> None:
    """The server's own lines go where all lines go, but for those that `api.middleware` writes better."""
    logs.configure(settings.log_level, settings.log_json)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"  # the server sees that nobody listens to it, and writes nothing
    logging.getLogger("uvicorn.error").addFilter(lambda record: not record.getMessage().startswith("Exception in ASGI application"))
