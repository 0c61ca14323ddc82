"""From a problem+json answer to one readable sentence."""

import json
from typing import Any

import httpx

from potstill.errors import PotstillError


class Refused(PotstillError):
    """The service said no; `status` is HTTP's, `problem` the body it explained itself with."""

    def __init__(self, message: str, status: int, problem: dict[str, Any]) -> None:
        super().__init__(message)
        self.status, self.problem = status, problem


def check(response: httpx.Response) -> None:
    """Raise `Refused` if the answer (its body already read) is a refusal."""
    if response.status_code < 400:
        return
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    raise Refused(explain(problem) or f"{response.request.url} answered {response.status_code}", response.status_code, problem)


def explain(problem: dict[str, Any]) -> str:
    """All a problem says that helps: each field with what was given and allowed; otherwise its title and detail."""
    fields = [_field(error) for error in problem.get("errors") or []]
    if fields:
        return "; ".join(fields)
    return ": ".join(str(problem[key]) for key in ("title", "detail") if problem.get(key))


def _field(error: dict[str, Any]) -> str:
    where = f"{error['field']}: " if error.get("field") else ""
    given = f" (given {json.dumps(error['given'], ensure_ascii=False)})" if error.get("given") is not None else ""
    allowed = error.get("allowed")
    text = ", ".join(map(str, allowed)) if isinstance(allowed, list) else allowed
    return f"{where}{error['message']}{given}" + (f"; allowed: {text}" if text is not None else "")
