"""Tending the artifact store: making room in it, and looking whether what it holds is whole."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.service import Running
from jobs import collect, verify
from jobs.retention import lifetimes

router = APIRouter(tags=["service"])

NextName = Annotated[
    str | None, Query(pattern=r"^[0-9a-f]{1,64}$", description="`next_cursor` of an answer with `has_more`, to go on from")
]


@router.post("/gc", summary="Remove files that nobody needs any more from the store, or tell what would go: some seconds' work a call")
def collect_files(
    service: Running,
    dry_run: Annotated[bool, Query(description="only tell what would go")] = False,
    unused_days: Annotated[
        float | None,
        Query(ge=0.0, le=36_500.0, description="let go of what can be computed again and was not used for so long, whatever the settings"),
    ] = None,
    cursor: NextName = None,
) -> collect.Collected:
    lives = lifetimes(service.settings.keep_days, unused_days)
    return collect.collect(service.read, service.sessions, service.store, lives, dry_run=dry_run, cursor=cursor)


@router.post("/verify", summary="Read the files in the store, and tell which are damaged or missing: some seconds' work a call")
def verify_files(service: Running, cursor: NextName = None) -> verify.Verified:
    return verify.verify(service.read, service.sessions, service.store, cursor=cursor)
