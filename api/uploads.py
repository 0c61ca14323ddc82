"""A multipart upload straight to a file on the store's file system: never in memory, and nothing left behind on a refusal."""

import errno
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from anyio import to_thread
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from api.problems import Refusal, with_hint
from ddcore.errors import DdcoreError, Problem
from jobs.errors import StoreFull

WRITE_EVERY = 1 << 20  # bytes gathered between two writes, each of which costs a hop to a thread
MAX_FIELD_BYTES = 4096


@dataclass
class Upload:
    """One file of a form, on disk while the request lasts. filename: what the sender called it, without folders."""

    path: Path
    filename: str
    fields: dict[str, str]


@asynccontextmanager
async def receive_upload(request: Request, folder: Path, max_bytes: int, fields: tuple[str, ...]) -> AsyncIterator[Upload]:
    """Stream the form's `file` into a new file in `folder`, which is removed at the end.

    fields: names of the text fields the form may have. Raises `Refusal` for anything else, beyond `max_bytes`, and in the place of a
    `DdcoreError` of the caller, whose subject the file is; `StoreFull` if the disk is.
    """
    media, options = parse_options_header(request.headers.get("content-type", ""))
    if media != b"multipart/form-data" or not options.get(b"boundary"):
        given = Problem(("Content-Type",), "must be a form", media.decode("latin-1") or "nothing", "multipart/form-data with a boundary")
        raise Refusal("unsupported_media_type", "post the file as multipart/form-data, field `file`", [given])
    await to_thread.run_sync(lambda: folder.mkdir(parents=True, exist_ok=True))
    number, name = tempfile.mkstemp(prefix="upload-", dir=folder)
    try:
        try:
            with open(number, "wb") as file:
                form = _Form(file, max_bytes, fields)
                await _feed(request, form, options[b"boundary"])
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(form.size) from error
            raise
        if form.filename is None:
            missing = Problem(("file",), "is needed", None, "one file, in the form field `file`")
            raise Refusal("invalid_request", "file: is needed", [missing])
        filename = _plain_name(form.filename)
        try:
            yield Upload(Path(name), filename, form.texts)
        except DdcoreError as error:
            raise Refusal(error.code, with_hint(error), [Problem(("file",), error.detail, filename, error.hint)]) from error
    finally:
        await to_thread.run_sync(lambda: Path(name).unlink(missing_ok=True))


def _plain_name(filename: str) -> str:
    """What the sender called the file, without folders and control characters."""
    name = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(letter if letter.isprintable() else "_" for letter in name)[-150:] or "upload"


async def _feed(request: Request, form: "_Form", boundary: bytes) -> None:
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
            if form.waiting_bytes >= WRITE_EVERY:
                await to_thread.run_sync(form.flush)
        parser.finalize()
        await to_thread.run_sync(form.flush)
    except FormParserError as error:
        raise Refusal("bad_request", f"the form cannot be read: {error}") from error
    except ClientDisconnect as error:
        raise Refusal("bad_request", "the upload was cut off") from error
    if not form.ended:
        raise Refusal("bad_request", "the form ends in the middle; was the upload cut off?")


@dataclass
class _Form:
    """Callbacks of the push parser: one file part to `file`, a few short text parts to `texts`."""

    file: IO[bytes]
    max_bytes: int
    allowed: tuple[str, ...]
    texts: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    size: int = 0
    ended: bool = False
    waiting: list[bytes] = field(default_factory=list)
    waiting_bytes: int = 0
    _header: list[bytes] = field(default_factory=lambda: [b"", b""])
    _disposition: bytes = b""
    _name: str = ""
    _text: bytearray | None = None

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self.begin,
            "on_header_field": lambda data, start, end: self.header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self.header(1, data[start:end]),
            "on_header_end": self.header_end,
            "on_headers_finished": self.headers_finished,
            "on_part_data": lambda data, start, end: self.data(data[start:end]),
            "on_part_end": self.end,
            "on_end": self.finish,
        }

    def begin(self) -> None:
        self._disposition, self._text = b"", None

    def header(self, half: int, data: bytes) -> None:
        self._header[half] += data

    def header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]
        self._header = [b"", b""]

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == "file" and b"filename" in options:
            if self.filename is not None:
                raise Refusal("invalid_request", "file: one file at a time", [Problem(("file",), "one file at a time", "two", "one")])
            self.filename = options[b"filename"].decode("utf-8", "replace")
            return
        if self._name not in self.allowed:
            known = ["file", *self.allowed]
            message = "must be a file part, with a filename" if self._name == "file" else "there is no such form field"
            raise Refusal("invalid_request", f"{self._name}: {message}", [Problem((self._name,), message, None, known)])
        self._text = bytearray()

    def data(self, piece: bytes) -> None:
        if self._text is not None:
            self._text += piece
            if len(self._text) > MAX_FIELD_BYTES:
                problem = Problem((self._name,), "is too long", f"over {MAX_FIELD_BYTES} bytes", f"{MAX_FIELD_BYTES} bytes")
                raise Refusal("invalid_request", f"{self._name}: is too long", [problem])
            return
        self.size += len(piece)
        if self.size > self.max_bytes:
            detail = f"the file goes on beyond the limit; an upload may have {self.max_bytes} bytes"
            raise Refusal("too_large", detail, headers={"Connection": "close"})
        self.waiting.append(piece)
        self.waiting_bytes += len(piece)

    def end(self) -> None:
        if self._text is not None:
            text = self._text.decode("utf-8", "replace").strip()
            if not text.isprintable():
                problem = Problem((self._name,), "must be one line of printable text", text, "no control characters")
                raise Refusal("invalid_request", f"{self._name}: must be one line of printable text", [problem])
            self.texts[self._name] = text

    def finish(self) -> None:
        self.ended = True

    def flush(self) -> None:
        self.file.writelines(self.waiting)
        self.waiting, self.waiting_bytes = [], 0


def upload_form(what: str) -> dict[str, Any]:
    """How OpenAPI describes the form, so that Swagger UI offers a file picker."""
    properties = {
        "file": {"type": "string", "format": "binary", "description": what},
        "name": {"type": "string", "description": "the file's own name when absent", "example": ""},
    }
    schema = {"type": "object", "required": ["file"], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
