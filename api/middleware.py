"""What happens around every request: an id, a limit on the body, a line in the log, counters for Prometheus, headers for browsers."""

import logging
import re
import secrets
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import problem_response
from jobs import logs

MAX_JSON_BYTES = 1 << 20
UPLOADS = ("/datasets", "/artifacts")  # POST here is a file, with a limit of its own
FORM_ALLOWANCE = 1 << 16  # what the multipart wrapping of a file may add
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PROBES = ("/healthz", "/readyz", "/metrics")  # asked every few seconds: a good answer is no news
LONGEST_PATH = 300  # characters of it in a line
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
log = logging.getLogger("potstill.api.access")


class Envelope:
    """ASGI middleware around everything but the last resort, which answers a crash after this has let it pass."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int, registry: CollectorRegistry) -> None:
        self.app, self.max_upload_bytes = app, max_upload_bytes
        self.requests = Counter("potstill_http_requests_total", "Requests answered", ["method", "route", "status"], registry=registry)
        self.seconds = Histogram("potstill_http_request_seconds", "Time to the first byte", ["method", "route"], registry=registry)
        self.open = Gauge("potstill_http_requests_in_progress", "Requests that are being answered", registry=registry)
        self.streams = Gauge("potstill_event_streams_open", "Event streams among them", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, began = Headers(scope=scope), time.perf_counter()
        asked = headers.get("x-request-id", "")
        request_id = asked if _ID.fullmatch(asked) else f"req_{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = request_id
        logs.bind(request_id=request_id)  # each request is a task of its own
        upload = scope["method"] == "POST" and scope["path"].rstrip("/") in UPLOADS
        limit = self.max_upload_bytes + FORM_ALLOWANCE if upload else MAX_JSON_BYTES
        seen = status = streams = 0

        async def count(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                own = MutableHeaders(raw=message["headers"])
                own["X-Request-ID"] = request_id
                own.setdefault("X-Content-Type-Options", "nosniff")
                self._count(scope, status, time.perf_counter() - began)
                streams = int(own.get("content-type", "").startswith("text/event-stream"))
                self.streams.inc(streams)
            await send(message)

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, _too_large(limit, upload, None), {"Connection": "close"})
            return message

        self.open.inc()
        try:
            announced = headers.get("content-length", "")
            if announced.isdecimal() and int(announced[:20]) > limit:
                detail = _too_large(limit, upload, int(announced[:20]))
                refusal = problem_response(request_id, "too_large", detail, headers={"Connection": "close"})
                return await refusal(scope, receive, count)
            await self.app(scope, limited, count)
        except Exception:
            if not status:
                status = 500
                self._count(scope, status, time.perf_counter() - began)
            log.exception("unexpected error", extra=_said(scope))
            raise
        finally:
            self.open.dec()
            self.streams.dec(streams)
            line = _said(scope) | {"status": status or None, "seconds": round(time.perf_counter() - began, 4)}
            quiet = scope["path"] in PROBES and 0 < status < 400
            log.log(logging.DEBUG if quiet else logging.INFO, "answered" if status else "given up by the client", extra=line)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # Whatever a stranger makes up as path or method must not become a series of its own.
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.requests.labels(method, route, status).inc()
        self.seconds.labels(method, route).observe(seconds)


def _said(scope: Scope) -> dict[str, object]:
    """What a line tells of a request; no query, which may hold what is secret. A job's id: of the path, or of the job that was made."""
    made = scope["state"].get("job_id")
    return {
        "job_id": scope.get("path_params", {}).get("job_id", made) if made is None else made,
        "method": scope["method"],
        "route": getattr(scope.get("route"), "path", None),
        "path": scope["path"][:LONGEST_PATH],
        "client": (scope.get("client") or [None])[0],
    }


def _too_large(limit: int, upload: bool, given: int | None) -> str:
    what = f"{given} bytes were announced" if given is not None else "the body goes on beyond the limit"
    return f"{what}; an upload may have {limit - FORM_ALLOWANCE} bytes" if upload else f"{what}; a JSON body may have {limit} bytes"
