"""Every refusal as application/problem+json (RFC 9457): what is wrong, where, what was given, what is allowed."""

import json
import logging
import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from pydantic_core import to_jsonable_python
from starlette.exceptions import HTTPException
from starlette.responses import Response

from api.field_errors import field_problems
from ddcore.errors import DdcoreError, Problem, SpecError
from jobs.errors import BadCursor, Conflict, Damaged, Gone, IdempotencyConflict, JobsError, NotFound, StoreAway, StoreFull

log = logging.getLogger("potstill.api")

MEDIA_TYPE = "application/problem+json"
LONGEST_GIVEN = 300  # characters of what was given that an answer repeats

# code -> status, title. The codes are part of the contract: add, never rename.
PROBLEMS: dict[str, tuple[int, str]] = {
    "bad_request": (400, "The request cannot be read"),
    "invalid_json": (400, "The body is not JSON"),
    "not_found": (404, "There is no such thing"),
    "method_not_allowed": (405, "This address does not answer that method"),
    "gone": (410, "The file is gone"),
    "conflict": (409, "This cannot be done in the present state"),
    "idempotency_conflict": (409, "This Idempotency-Key was used for another request"),
    "too_large": (413, "Too large"),
    "unsupported_media_type": (415, "The body is of the wrong kind"),
    "range_not_satisfiable": (416, "The range lies outside the file"),
    "invalid_request": (422, "The request does not make sense"),
    "invalid_spec": (422, "The run that was asked for does not make sense"),
    "bad_dataset": (422, "The file is not a usable dataset"),
    "bad_checkpoint": (422, "The file is not a usable checkpoint"),
    "store_full": (507, "No room for more files"),
    "not_ready": (503, "Not ready"),
    "internal": (500, "Something broke on our side"),
}


_EXAMPLE = {
    "field": "method.inner_steps",
    "message": "must be greater than or equal to 1",
    "given": 0,
    "allowed": "1 to 10000",
}


class FieldProblem(BaseModel):
    """One field that is wrong."""

    field: str = Field(description="path of the field as it was posted")
    message: str
    given: Any
    allowed: Any


class ProblemBody(BaseModel):
    """The body of every answer with a status of 400 or more."""

    type: str = Field(examples=["urn:potstill:problem:invalid_request"])
    title: str = Field(examples=[PROBLEMS["invalid_request"][1]])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["method.inner_steps: must be greater than or equal to 1"])
    code: str = Field(description="closed list: " + ", ".join(PROBLEMS), examples=["invalid_request"])
    errors: list[FieldProblem] = Field(examples=[[_EXAMPLE]])
    request_id: str = Field(examples=["req_ec291ae5192e0512"])


class Refusal(Exception):
    """Raised by a route to answer with a problem: a code from `PROBLEMS`, a sentence, and the fields that are wrong."""

    def __init__(self, code: str, detail: str, errors: Sequence[Problem] = (), headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.errors, self.headers = code, detail, errors, headers or {}


def problem_response(
    request_id: str,
    code: str,
    detail: str,
    errors: Sequence[Problem] = (),
    headers: dict[str, str] | None = None,
    status: int | None = None,
) -> Response:
    """The answer itself; `status` overrides the code's own where HTTP already decided it."""
    listed, title = PROBLEMS[code]
    number = status or listed
    fields = [
        {"field": ".".join(map(str, p.loc)), "message": p.message, "given": _shown(p.given), "allowed": _shown(p.allowed)} for p in errors
    ]
    body = {
        "type": f"urn:potstill:problem:{code}",
        "title": title if number == listed else HTTPStatus(number).phrase,
        "status": number,
        "detail": detail,
        "code": code,
        "errors": fields,
        "request_id": request_id,
    }
    # A lone surrogate is legal in JSON text and not in UTF-8: what was given must not break the answer that refuses it.
    content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
    return Response(content, number, {**(headers or {}), "X-Request-ID": request_id}, MEDIA_TYPE)


def _shown(value: Any) -> Any:
    """`value` as plain JSON, cut short when it is long."""
    plain = _finite(to_jsonable_python(value, fallback=str))
    text = json.dumps(plain, ensure_ascii=False)
    return plain if len(text) <= LONGEST_GIVEN else text[:LONGEST_GIVEN] + "…"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value


def sentence(problems: Sequence[Problem]) -> str:
    """What is wrong, in one line: the first field in full, and how many more there are."""
    first = problems[0]
    where = ".".join(map(str, first.loc))
    text = f"{where}: {first.message}" if where else first.message
    return text if len(problems) == 1 else f"{text} (and {len(problems) - 1} more; see errors)"


def with_hint(error: DdcoreError | JobsError) -> str:
    """What is wrong and what to try."""
    return "; ".join(part.rstrip(".") for part in (error.detail, error.hint) if part)


async def on_refusal(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, Refusal)
    return problem_response(request.state.request_id, exc.code, exc.detail, exc.errors, exc.headers)


async def on_engine_error(request: Request, exc: Exception) -> Response:
    """A refusal that the shared checks of specs, archives and checkpoints raised."""
    assert isinstance(exc, DdcoreError)
    errors = exc.problems if isinstance(exc, SpecError) else ()
    known = exc.code in PROBLEMS and exc.code != "internal"
    detail = sentence(errors) if errors else with_hint(exc)
    return problem_response(request.state.request_id, exc.code if known else "invalid_request", detail, errors)


async def on_jobs_error(request: Request, exc: Exception) -> Response:
    """What `jobs` refuses: nothing has this id, the state does not allow it, the store is full."""
    assert isinstance(exc, JobsError)
    code = next((code for kind, code in _OF_JOBS if isinstance(exc, kind)), "bad_request")
    detail = with_hint(exc)
    errors = [Problem(("cursor",), exc.detail, request.query_params.get("cursor"), exc.hint)] if code == "invalid_request" else []
    if code in ("not_ready", "internal"):
        log.error("%s", exc.detail)
    return problem_response(request.state.request_id, code, detail, errors, {"Retry-After": "5"} if code == "not_ready" else None)


async def on_database_away(request: Request, exc: Exception) -> Response:
    log.error("the database cannot be used: %s", str(exc).partition("\n")[0])
    if "disk is full" in str(exc) or "No space left on device" in str(exc):  # SQLite's words, and PostgreSQL's
        return problem_response(request.state.request_id, "store_full", "the database's disk is full; nothing new can be recorded")
    detail = "the database cannot be reached just now; try again in a moment"
    return problem_response(request.state.request_id, "not_ready", detail, headers={"Retry-After": "5"})


async def on_invalid(request: Request, exc: Exception) -> Response:
    """What pydantic found wrong with path, query, headers or body."""
    assert isinstance(exc, RequestValidationError)
    errors = exc.errors()
    if errors and errors[0]["type"] == "json_invalid":
        reason = errors[0].get("ctx", {}).get("error", "unreadable")
        detail = f"the body is not JSON: {reason} at character {errors[0]['loc'][-1]}"
        return problem_response(request.state.request_id, "invalid_json", detail)
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if isinstance(exc.body, bytes) and not media.endswith("json"):
        given = Problem(("Content-Type",), "must be JSON", media or "nothing", "application/json")
        detail = "post JSON with Content-Type: application/json"
        return problem_response(request.state.request_id, "unsupported_media_type", detail, [given])
    problems = field_problems(errors, request.url.path)
    return problem_response(request.state.request_id, "invalid_request", sentence(problems), problems)


# Narrow before wide.
_OF_JOBS: tuple[tuple[type[JobsError], str], ...] = (
    (NotFound, "not_found"),
    (Gone, "gone"),
    (IdempotencyConflict, "idempotency_conflict"),
    (Conflict, "conflict"),
    (StoreFull, "store_full"),
    (StoreAway, "not_ready"),
    (Damaged, "internal"),
    (BadCursor, "invalid_request"),
)
_BY_STATUS = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}


async def on_http_exception(request: Request, exc: Exception) -> Response:
    """What the framework itself refuses: no such route, wrong method, a body it cannot read."""
    assert isinstance(exc, HTTPException)
    status = exc.status_code
    detail = str(exc.detail)
    headers = dict(exc.headers or {})
    if status == 404:
        detail = f"nothing lives at {request.url.path}; GET /docs lists every address"
    elif status == 405:
        detail = f"{request.url.path} does not answer {request.method}; it answers {headers.get('Allow', 'other methods')}"
    elif status == 400 and detail == "There was an error parsing the body":
        detail = "the body is not JSON that can be read: nested too deep, a number with too many digits, or not UTF-8"
    code = _BY_STATUS.get(status, "bad_request" if status < 500 else "internal")
    return problem_response(request.state.request_id, code, detail, headers=headers, status=status)


async def on_crash(request: Request, exc: Exception) -> Response:
    """An error that nobody foresaw: the log has the traceback, the caller the request id to quote."""
    detail = f"an unexpected error; quote request id {request.state.request_id} to whoever runs this service"
    return problem_response(request.state.request_id, "internal", detail)
