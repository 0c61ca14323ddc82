"""Making room in the artifact store: `collect` removes what nobody needs any more, or tells what it would remove."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from jobs import condemned, retention
from jobs.bodies import Body
from jobs.condemned import GRACE
from jobs.database import now, transact
from jobs.models import Artifact, Condemned
from jobs.store import Store, Stored

LEFT = timedelta(days=1)  # what is being written is touched more often than that
PART = 10.0  # seconds of work in one call; proxies wait for a minute
START = "0"  # before the names of all files


class Part(Body):
    """What one call did of a work that goes through the whole store."""

    has_more: bool = Field(description="time was up: go on with `cursor` = `next_cursor`, and add up what the answers count")
    next_cursor: str | None


class Share(Body):
    """Files of one kind that are needed no more."""

    kind: str = Field(description="kind of the step that left them; `unnamed`: nothing names them; `set_aside`: damaged or half-written")
    files: int
    bytes: int = Field(description="room is made by those that nothing else has as well")
    oldest: datetime


class Collected(Part):
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


@dataclass
class _Tally:
    """What one call came upon."""

    shares: dict[str, Share] = field(default_factory=dict)
    deleted: condemned.Amount = field(default_factory=condemned.Amount)

    def add(self, kind: str, found: condemned.Amount, oldest: datetime) -> None:
        was = self.shares.get(kind, Share(kind=kind, files=0, bytes=0, oldest=oldest))
        self.shares[kind] = Share(kind=kind, files=was.files + found.files, bytes=was.bytes + found.size, oldest=min(was.oldest, oldest))

    def add_stored(self, kind: str, found: Sequence[Stored]) -> None:
        if found:
            self.add(kind, condemned.Amount(len(found), sum(one.size for one in found)), min(one.modified for one in found))


def collect(
    read: sessionmaker[Session],
    write: sessionmaker[Session],
    store: Store,
    lives: Mapping[str, timedelta],
    *,
    dry_run: bool,
    cursor: str | None = None,
    seconds: float = PART,
    grace: timedelta = GRACE,
) -> Collected:
    """Let go of the files that have outlived `lives` (by kind of step, see `retention.lifetimes`) and of those that nothing names.

    After so many seconds it says where to go on from: another call does, with that `cursor`. No transaction is long. It may be
    interrupted, and run twice at once. Raises `StoreAway`.
    """
    tally = _Tally()
    walk = _look(read, store, lives, cursor, tally, grace) if dry_run else _sweep(read, write, store, lives, cursor, tally, grace)
    place = within(seconds, walk)
    with read() as session:
        waits = condemned.waiting(session)
    return Collected(
        has_more=place is not None,
        next_cursor=place,
        dry_run=dry_run,
        unneeded=list(tally.shares.values()),
        files=sum(share.files for share in tally.shares.values()),
        bytes=sum(share.bytes for share in tally.shares.values()),
        condemned_files=waits.files,
        condemned_bytes=waits.size,
        deleted_files=tally.deleted.files,
        deleted_bytes=tally.deleted.size,
    )


def within(seconds: float, walk: Iterator[str]) -> str | None:
    """Go on with a walk, which yields a cursor at every place where it can be broken off; the one where time was up, or None at its end."""
    until = time.monotonic() + seconds
    for place in walk:
        if time.monotonic() >= until:
            return place
    return None


def _look(
    read: sessionmaker[Session], store: Store, lives: Mapping[str, timedelta], cursor: str | None, tally: _Tally, grace: timedelta
) -> Iterator[str]:
    """What would go, and nothing goes."""
    with read() as session:
        at = now(session)
        for kind, (found, oldest) in retention.outlived(session, {} if cursor else lives).items():
            tally.add(kind, found, oldest)
    for place, unnamed in _unnamed(read, store, cursor or START, at - grace):
        tally.add_stored("unnamed", unnamed)
        yield place
    tally.add_stored("set_aside", store.leavings(at - LEFT))
    with read() as session:
        tally.deleted = condemned.due(session, grace)


def _sweep(
    read: sessionmaker[Session],
    write: sessionmaker[Session],
    store: Store,
    lives: Mapping[str, timedelta],
    cursor: str | None,
    tally: _Tally,
    grace: timedelta,
) -> Iterator[str]:
    """What was done in an earlier call is not found again, so only the long way through the store needs a cursor."""
    place = cursor or START
    with read() as session:
        at = now(session)
    for kind, files in expire(write, lives):
        tally.add(kind, condemned.Amount(len(files), sum(file.size for file in files)), min(file.created_at for file in files))
        yield place
    for last, unnamed in _unnamed(read, store, place, at - grace):
        place = last
        if unnamed:
            transact(write, lambda s, unnamed=unnamed: condemned.condemn(s, unnamed))  # type: ignore[misc]
        tally.add_stored("unnamed", unnamed)
        yield place
    leavings = store.leavings(at - LEFT)
    store.clear(leavings)
    tally.add_stored("set_aside", leavings)
    while (deleted := condemned.remove(write, store, grace, rounds=1)).files:
        tally.deleted += deleted
        yield place


def expire(write: sessionmaker[Session], lives: Mapping[str, timedelta]) -> Iterator[tuple[str, list[Artifact]]]:
    """Let go of the files that have outlived `lives`, those of a few steps at a time; yields them with the kind of their steps."""
    for kind in transact(write, lambda s: retention.outlived(s, lives)):  # looked for before others have to wait
        while files := transact(write, lambda s, kind=kind: retention.expire(s, kind, lives[kind])):  # type: ignore[misc]
            yield kind, files


def _unnamed(read: sessionmaker[Session], store: Store, after: str, before: datetime) -> Iterator[tuple[str, list[Stored]]]:
    """Name by name from `after` on, the files that nothing names and that are not condemned yet, and how far that is.

    before: what was put later may be named in a moment.
    """
    for some in store.listing(after):
        old = [one for one in some if one.modified < before]
        names = [one.sha256 for one in old]
        with read() as session:
            known = condemned.named(session, names) | set(session.scalars(select(Condemned.sha256).where(Condemned.sha256.in_(names))))
        if some:
            yield some[-1].sha256, [one for one in old if one.sha256 not in known]
