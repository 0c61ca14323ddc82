"""Logs of the worker: one line an event, as JSON or as text, each with the ids of the step it speaks of."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TextIO

_FIELDS = ("step_id", "attempt", "kind", "event", "pid", "seconds", "code")  # what `extra=` may carry


class _Line(logging.Formatter):
    """One line a record, a traceback included. as_json: an object a line, else `time level logger message key=value ...`."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: record.__dict__[name] for name in _FIELDS if name in record.__dict__}
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self.as_json:
            head = {"time": at, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
            return json.dumps(head | {"process": record.process} | fields, default=str)
        tail = "".join(f" {name}={json.dumps(value, default=str) if name == 'trace' else value}" for name, value in fields.items())
        return f"{at} {record.levelname:<7} {record.name} {record.getMessage()}{tail}".replace("\n", "\\n")


def configure(level: str, as_json: bool, stream: TextIO | None = None) -> None:
    """Send every log of this process to `stream` (standard error when absent), replacing what was set up before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Line(as_json))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for chatty in (
        "celery.worker.strategy",
        "celery.app.trace",
    ):  # "received" and "succeeded" of each message: the step's own lines say more
        logging.getLogger(chatty).setLevel(logging.WARNING)


def own_stream() -> TextIO:
    """A stream on a copy of standard error, which goes on when descriptor 2 itself is pointed elsewhere."""
    return os.fdopen(os.dup(2), "w", buffering=1)
