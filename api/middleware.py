"""What happens around every request: an id, a limit on the body, counters for Prometheus, and headers for browsers."""

import re
import secrets
import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import problem_response

MAX_JSON_BYTES = 1 << 20
UPLOADS = ("/datasets", "/artifacts")  # POST here is a file, with a limit of its own
FORM_ALLOWANCE = 1 << 16  # what the multipart wrapping of a file may add
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Envelope:
    """ASGI middleware around everything but the last resort, which answers a crash after this has let it pass."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int, registry: CollectorRegistry) -> None:
        self.app, self.max_upload_bytes = app, max_upload_bytes
        self.requests = Counter("potstill_http_requests_total", "Requests answered", ["method", "route", "status"], registry=registry)
        self.seconds = Histogram("potstill_http_request_seconds", "Time to the first byte", ["method", "route"], registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, began = Headers(scope=scope), time.perf_counter()
        asked = headers.get("x-request-id", "")
        request_id = asked if _ID.fullmatch(asked) else f"req_{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = request_id
        upload = scope["method"] == "POST" and scope["path"].rstrip("/") in UPLOADS
        limit = self.max_upload_bytes + FORM_ALLOWANCE if upload else MAX_JSON_BYTES
        seen = 0

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = MutableHeaders(raw=message["headers"])
                own["X-Request-ID"] = request_id
                own.setdefault("X-Content-Type-Options", "nosniff")
                self._count(scope, message["status"], time.perf_counter() - began)
            await send(message)

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, _too_large(limit, upload, None), {"Connection": "close"})
            return message

        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > limit:
            detail = _too_large(limit, upload, int(announced[:20]))
            refusal = problem_response(request_id, "too_large", detail, headers={"Connection": "close"})
            return await refusal(scope, receive, count)
        try:
            await self.app(scope, limited, count)
        except Exception:
            self._count(scope, 500, time.perf_counter() - began)
            raise

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # Whatever a stranger makes up as path or method must not become a series of its own.
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.requests.labels(method, route, status).inc()
        self.seconds.labels(method, route).observe(seconds)


def _too_large(limit: int, upload: bool, given: int | None) -> str:
    what = f"{given} bytes were announced" if given is not None else "the body goes on beyond the limit"
    return f"{what}; an upload may have {limit - FORM_ALLOWANCE} bytes" if upload else f"{what}; a JSON body may have {limit} bytes"
