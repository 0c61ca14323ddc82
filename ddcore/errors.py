"""Errors that a person can act on: each carries a code from a closed list, a sentence, and what to try."""

from dataclasses import dataclass
from typing import Any

CODES = (
    "invalid_spec",  # the spec cannot be run: refused before any work
    "bad_dataset",  # an archive or image that cannot be read
    "download_failed",  # a public data set or weight file could not be fetched or verified
    "teacher_collapsed",  # features of (nearly) no rank, or a k-NN accuracy below the stated floor
    "bad_checkpoint",  # a given checkpoint does not fit the backbone
    "diverged",  # NaN, infinity or a runaway learning rate
    "out_of_memory",
    "missing_input",  # an input artifact is absent or damaged
    "worker_lost",  # the process died, or its lease ran out, more often than allowed
    "internal",
)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec: where (a path of field names), what, what was given, and what is allowed."""

    loc: tuple[str | int, ...]
    message: str
    given: Any = None
    allowed: Any = None


class DdcoreError(Exception):
    """Base of all errors that the engine raises on purpose."""

    def __init__(self, code: str, detail: str, hint: str = "") -> None:
        if code not in CODES:
            raise ValueError(f"unknown error code {code!r}")
        super().__init__(detail)
        self.code, self.detail, self.hint = code, detail, hint


class SpecError(DdcoreError):
    """A spec that is well-formed but makes no sense for its data set; carries one `Problem` a field."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        text = "; ".join(f"{'.'.join(map(str, p.loc))}: {p.message}" for p in problems)
        super().__init__("invalid_spec", text, "correct the named fields and post again")


class Stopped(Exception):
    """Raised inside a long loop when the caller asked it to stop; the last checkpoint stands."""
