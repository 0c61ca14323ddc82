"""Making room in the artifact store: `collect` removes what nobody needs any more, or tells what it would remove."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from jobs import condemned, retention
from jobs.bodies import Body
from jobs.condemned import GRACE
from jobs.database import now, transact
from jobs.models import Condemned
from jobs.store import Store, Stored

LEFT = timedelta(days=1)  # what is being written is touched more often than that


class Share(Body):
    """Files of one kind that are needed no more."""

    kind: str = Field(description="kind of the step that left them; `unnamed`: nothing names them; `set_aside`: damaged or half-written")
    files: int
    bytes: int = Field(description="room is made by those that nothing else has as well")
    oldest: datetime


class Collected(Body):
    """What is removed, or with dry_run would be.

    Files are not deleted at once: they are condemned first, and deleted an hour later, by the maintenance loop or the next call.
    """

    dry_run: bool
    unneeded: list[Share] = Field(description="what this call found; what was set aside is deleted at once, the rest is condemned")
    files: int = Field(description="sum of `unneeded`")
    bytes: int = Field(description="sum of `unneeded`")
    condemned_files: int = Field(description="waiting for their hour, afterwards")
    condemned_bytes: int
    deleted_files: int = Field(description="had waited for their hour: deleted by this call")
    deleted_bytes: int


def collect(
    read: sessionmaker[Session],
    write: sessionmaker[Session],
    store: Store,
    lives: Mapping[str, timedelta],
    *,
    dry_run: bool,
    grace: timedelta = GRACE,
) -> Collected:
    """Let go of the files that have outlived `lives` (by kind of step, see `retention.lifetimes`) and of those that nothing names.

    It takes a while where there is much: no transaction is long. It may be interrupted, and run twice at once. Raises `StoreAway`.
    """
    with read() as session:
        at, found = now(session), retention.outlived(session, lives)
    shares = [Share(kind=kind, files=amount.files, bytes=amount.size, oldest=oldest) for kind, (amount, oldest) in found.items()]
    if not dry_run:
        expire(write, lives)
    unnamed = []
    for some in store.listing():
        new = _unnamed(read, [one for one in some if one.modified < at - grace])
        unnamed += new
        if new and not dry_run:
            transact(write, lambda s, new=new: condemned.condemn(s, new))  # type: ignore[misc]
    leavings = store.leavings(at - LEFT)
    shares += [_share(kind, some) for kind, some in (("unnamed", unnamed), ("set_aside", leavings)) if some]
    if not dry_run:
        store.clear(leavings)
        deleted = condemned.remove(write, store, grace)
    with read() as session:
        if dry_run:
            deleted = condemned.due(session, grace)
        waits = condemned.waiting(session)
    return Collected(
        dry_run=dry_run,
        unneeded=shares,
        files=sum(share.files for share in shares),
        bytes=sum(share.bytes for share in shares),
        condemned_files=waits.files,
        condemned_bytes=waits.size,
        deleted_files=deleted.files,
        deleted_bytes=deleted.size,
    )


def expire(write: sessionmaker[Session], lives: Mapping[str, timedelta]) -> int:
    """Let go of the files that have outlived `lives`, a few steps at a time; returns of how many steps."""
    total = 0
    for kind in transact(write, lambda s: retention.outlived(s, lives)):  # looked for before others have to wait
        while count := transact(write, lambda s, kind=kind: retention.expire(s, kind, lives[kind])):  # type: ignore[misc]
            total += count
    return total


def _unnamed(read: sessionmaker[Session], files: Sequence[Stored]) -> list[Stored]:
    """Those of the files that nothing names, and that are not condemned yet. What is younger may be named in a moment."""
    names = [one.sha256 for one in files]
    with read() as session:
        known = condemned.named(session, names) | set(session.scalars(select(Condemned.sha256).where(Condemned.sha256.in_(names))))
    return [one for one in files if one.sha256 not in known]


def _share(kind: str, files: Sequence[Stored]) -> Share:
    return Share(kind=kind, files=len(files), bytes=sum(one.size for one in files), oldest=min(one.modified for one in files))
