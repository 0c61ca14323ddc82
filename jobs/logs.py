"""Logs of every process: one line an event, as JSON or as text, with the ids of what it speaks of.

From a request to the work it caused: the request's line has `request_id` and `job_id`, the line of a claim has `job_ids`, `step_id` and
`attempt`, and all lines of that attempt, in whichever process, have the last two.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

# What a line may carry beside its message, by `extra=` or by `bind`, in this order.
FIELDS = (
    *("request_id", "job_id", "job_ids", "step_id", "attempt", "kind", "queue", "worker"),
    *("method", "route", "path", "status", "client", "seconds", "code", "pid", "gpu"),
)
# Celery's "received" and "succeeded" of each message, of which the step's own lines say more; Alembic's at each look at the revision.
_QUIET = ("celery.worker.strategy", "celery.app.trace", "alembic.runtime.migration")
# Passwords in addresses, and what signs the address of a download.
_SECRET = re.compile(r"(://[^\s:/@\"']*:)[^\s/@\"']+(?=@)|((?:X-Amz-(?:Signature|Credential|Security-Token)|Signature)=)[^\s&\"']+", re.I)
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {10: "\\n", 13: "\\r", 9: "\\t"}
_bound: ContextVar[dict[str, Any]] = ContextVar("bound", default={})  # noqa: B039 - never changed, only replaced


class _Line(logging.Formatter):
    """One line a record, a traceback included. as_json: an object a line, else `time level logger message key=value ...`."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        known = _bound.get() | record.__dict__
        fields = {name: known[name] for name in FIELDS if known.get(name) is not None}
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self.as_json:
            head = {"time": at, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
            return redact(json.dumps(head | {"process": record.process} | fields, default=str))
        tail = "".join(f" {name}={_word(value)}" for name, value in fields.items())
        return redact(f"{at} {record.levelname:<7} {record.name} {record.getMessage()}{tail}".translate(_CONTROL))


def _word(value: object) -> str:
    """A value that ends at the next space."""
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if text and not re.search(r"[\s\"]", text) else json.dumps(text, ensure_ascii=False)


def redact(text: str) -> str:
    """`text` without the passwords and signatures of the addresses in it."""
    return _SECRET.sub(lambda found: f"{found[1] or found[2]}***", text)


def bind(**fields: object) -> None:
    """Give every line of this task or thread these fields from here on. A name must be one of `FIELDS`."""
    if unknown := fields.keys() - set(FIELDS):
        raise ValueError(f"a log line has no field {', '.join(sorted(unknown))}")
    _bound.set(_bound.get() | fields)


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """As `bind`, for the lines of a block."""
    before = _bound.get()
    bind(**fields)
    try:
        yield
    finally:
        _bound.set(before)


def bound_field(name: str) -> Any:
    """What was bound under this name; None if nothing was."""
    return _bound.get().get(name)


def configure(level: str, as_json: bool, stream: TextIO | None = None) -> None:
    """Send every log of this process to `stream` (standard error when absent), replacing what was set up before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Line(as_json))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def own_stream() -> TextIO:
    """A stream on a copy of standard error, which goes on when descriptor 2 itself is pointed elsewhere."""
    return os.fdopen(os.dup(2), "w", buffering=1)
