"""Making room in the artifact store."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.service import Running
from jobs import collect
from jobs.retention import lifetimes

router = APIRouter(tags=["service"])


@router.post("/gc", summary="Remove files that nobody needs any more from the store, or tell what would go")
def collect_files(
    service: Running,
    dry_run: Annotated[bool, Query(description="only tell what would go")] = False,
    unused_days: Annotated[
        float | None,
        Query(ge=0.0, le=36_500.0, description="let go of what can be computed again and was not used for so long, whatever the settings"),
    ] = None,
) -> collect.Collected:
    lives = lifetimes(service.settings.keep_days, unused_days)
    return collect.collect(service.read, service.sessions, service.store, lives, dry_run=dry_run)
