"""Immutable files over HTTP: strong ETag, conditional requests, ranges and exact HEAD, on top of Starlette's FileResponse."""

import re
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from api.problems import Refusal

_RANGES = re.compile(r"bytes=[ \t]*(\d{0,18}-\d{0,18})([ \t]*,[ \t]*(\d{0,18}-\d{0,18}))*[ \t]*", re.ASCII)


class _WholeFile(FileResponse):
    """A FileResponse that does not look at the Range header."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [pair for pair in scope["headers"] if pair[0].lower() != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def file_response(
    request: Request, path: Path, *, sha256: str, size: int, filename: str, media_type: str, created_at: datetime, inline: bool = False
) -> Response:
    """Answer GET or HEAD for one immutable file (RFC 9110, sections 13 and 14).

    Ranges are for GET only; one that is malformed, or that lies only partly among several, is ignored as the RFC allows; one that
    lies outside the file is refused with 416. sha256 is the ETag: the same bytes have the same tag wherever they are served.
    """
    etag = f'"sha256:{sha256}"'
    modified = format_datetime(created_at, usegmt=True)
    headers = {
        "ETag": etag,
        "Last-Modified": modified,
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": _disposition(filename, inline),
        "X-Content-Type-Options": "nosniff",
    }
    if inline:
        # A picture may be looked at in the browser; if it is an SVG with a script inside, the script stays dead.
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(None, 304, {name: headers[name] for name in ("ETag", "Last-Modified", "Cache-Control")})
    kind = FileResponse if _range_applies(request, etag, modified, size) else _WholeFile
    return kind(path, headers=headers, media_type=media_type)


def _range_applies(request: Request, etag: str, modified: str, size: int) -> bool:
    asked = request.headers.get("range")
    if asked is None or request.method != "GET" or request.headers.get("if-range", etag) not in (etag, modified):
        return False
    if not _RANGES.fullmatch(asked):
        return False
    pairs = [tuple(part.strip().split("-")) for part in asked.removeprefix("bytes=").split(",")]
    if any((not first and not last) or (first and last and int(first) > int(last)) for first, last in pairs):
        return False
    inside = [int(first) < size if first else int(last) > 0 and size > 0 for first, last in pairs]
    if not any(inside):
        headers = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"}
        raise Refusal("range_not_satisfiable", f"the file has {size} bytes; {asked!r} lies outside", headers=headers)
    return all(inside)


def _matches(header: str | None, etag: str) -> bool:
    """Weak comparison, as If-None-Match wants: a proxy may have put W/ before our tag."""
    if header is None:
        return False
    return header.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in header.split(",")]


def _disposition(filename: str, inline: bool) -> str:
    """RFC 6266: a plain ASCII name for everyone, and the exact one beside it when that differs."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", filename)
    kind = f'{"inline" if inline else "attachment"}; filename="{plain}"'
    return kind if plain == filename else f"{kind}; filename*=UTF-8''{quote(filename, safe='')}"


FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file", "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The range that was asked for"},
    304: {"description": "Not modified: If-None-Match names the file's ETag"},
    416: {"description": "The range lies outside the file; Content-Range says how long it is"},
}
