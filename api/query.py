"""No misspelt query parameter goes unnoticed: `?dry_rum=true` must not start a run."""

from typing import Any

from fastapi import Request

from api.field_errors import near_miss
from api.problems import Refusal
from ddcore.errors import Problem


async def only_known_parameters(request: Request) -> None:
    """Refuse query parameters that the route does not document."""
    if not request.query_params:
        return
    schema: dict[str, Any] = request.app.openapi()
    path = schema["paths"].get(getattr(request.scope.get("route"), "path", ""))
    if path is None:
        return
    known = [one["name"] for one in path[request.method.lower()].get("parameters", []) if one["in"] == "query"]
    if unknown := [name for name in request.query_params if name not in known]:
        message = "there is no such parameter"
        problems = [Problem((name,), message + near_miss(name, known), request.query_params[name], known) for name in unknown]
        raise Refusal("invalid_request", f"{unknown[0]}: {problems[0].message}", problems)
