"""Immutable files over HTTP: strong ETag, conditional requests, ranges and exact HEAD, wherever the store keeps them."""

import re
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

from fastapi import Request
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.problems import Refusal
from jobs.bodies import ArtifactView
from jobs.store import Store

_RANGES = re.compile(r"bytes=[ \t]*(\d{0,18}-\d{0,18})([ \t]*,[ \t]*(\d{0,18}-\d{0,18}))*[ \t]*", re.ASCII)


class _WholeFile(FileResponse):
    """A FileResponse that does not look at the Range header."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [pair for pair in scope["headers"] if pair[0].lower() != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def file_response(request: Request, store: Store, file: ArtifactView, *, inline: bool = False) -> Response:
    """Answer GET or HEAD for one immutable file (RFC 9110, sections 13 and 14).

    Ranges are for GET only; one that is malformed, or that lies only partly among several, is ignored as the RFC allows; one that
    lies outside the file is refused with 416. The sha256 is the ETag: the same bytes have the same tag wherever they are served.

    From a store on a server, a download is redirected to the server, which answers ranges too; what a browser shows comes from here,
    with the headers that guard it, and so does the rest of a download that names our ETag, which the server does not know.
    """
    etag = f'"sha256:{file.sha256}"'
    modified = format_datetime(file.created_at, usegmt=True)
    headers = {
        "ETag": etag,
        "Last-Modified": modified,
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": _disposition(file.name, inline),
        "X-Content-Type-Options": "nosniff",
    }
    if inline:
        # A picture may be looked at in the browser; if it is an SVG with a script inside, the script stays dead.
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(None, 304, {name: headers[name] for name in ("ETag", "Last-Modified", "Cache-Control")})
    in_part = _range_applies(request, etag, modified, file.size)
    if path := store.here(file.sha256):
        return (FileResponse if in_part else _WholeFile)(path, headers=headers, media_type=file.media_type)
    ours = request.headers.get("if-range") in (etag, modified) or "if-match" in request.headers
    if request.method == "GET" and not inline and not ours and (elsewhere := store.address(file.sha256)):
        return RedirectResponse(elsewhere, 307, {"ETag": etag, "Cache-Control": "no-store"})
    return _from_afar(request, store, file, headers, in_part)


def _from_afar(request: Request, store: Store, file: ArtifactView, headers: dict[str, str], in_part: bool) -> Response:
    """The file, or one range of it, passed on from the store's server; of several ranges, the whole file, as the RFC allows."""
    asked = request.headers.get("range", "").removeprefix("bytes=").strip()
    start, end, status = 0, file.size, 200
    if in_part and "," not in asked:
        first, _, last = asked.partition("-")
        start = int(first) if first else max(file.size - int(last), 0)
        end = min(int(last) + 1, file.size) if first and last else file.size
        headers, status = headers | {"Content-Range": f"bytes {start}-{end - 1}/{file.size}"}, 206
    headers = headers | {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
    if request.method == "HEAD":
        return Response(None, status, headers, file.media_type)
    return StreamingResponse(store.pieces(file.sha256, start, end - start), status, headers, file.media_type)


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
    307: {"description": "The file is on the store's server: Location says where, for a while"},
    304: {"description": "Not modified: If-None-Match names the file's ETag"},
    410: {"description": "Gone: nobody had used the file for as long as such files are kept"},
    416: {"description": "The range lies outside the file; Content-Range says how long it is"},
}
