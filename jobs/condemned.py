"""Deleting files that no row names, while somebody may be about to name them.

A file is named by the row of an artifact that is not gone, by a dataset, or by a step under way that was given it as a checkpoint.
Putting a file into the store and naming it are two acts, and the file may have lain there before, nameless, left by an attempt that
was killed. So it is deleted in three:

condemn  Under the graph lock: a row says since when a file that nothing names may go.
doom     Under the lock, `GRACE` after that at the earliest, and if still nothing names it: the row is marked. It is too late now.
delete   In the store, and within `HURRY` seconds of that transaction. Then the row goes, too.

Whoever has put files holds them: `spare` strikes their rows, and raises `BeingRemoved` (wait and try again) if one is doomed; then they
look whether the files are still there, and put those again that are not. Then, within `PROMISE`, they name them; `require` makes sure of
that in the transaction that does, under the lock.

So no named file is deleted. Say S is the transaction that spares a file, N the one that names it, and D the one that dooms it.
- D before S: S finds the row marked, and waits; or it finds no row, because the deletion is over, and the look that follows shows it.
- S before D, and N before D: D sees the name, and strikes the row instead.
- S before D before N cannot be: S left no row, so one was written after it (`spare` looks without the lock first, so at most one
  transaction's length before), and D came `GRACE` later, but N came within `PROMISE`, half of that.
A file that is named was not condemned before D either: `named` is asked under the lock, in which every name is given.

A process may die anywhere: a marked row whose process died may be spared, or doomed again, once it is `STUCK`, when no request of its can
be under way any more. What no order of transactions rules out is a process that is frozen between its last look at the clock and the
request to the store, for minutes, and then goes on; the file that it takes is missed like one that a broken disk took, and made again.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import ColumnElement, Text, and_, cast, delete, func, or_, select, true, update
from sqlalchemy.orm import Session, sessionmaker

from jobs.database import lock_graph, now, transact
from jobs.errors import StoreAway
from jobs.models import LIVE_STEP, Artifact, Condemned, Dataset, Step
from jobs.store import Blob, Store

GRACE = timedelta(hours=1)
PROMISE = GRACE / 2
HURRY = 60.0  # seconds
STUCK = timedelta(minutes=5)  # longer than HURRY and the longest request to a store, together
AT_ONCE = 200  # files of one transaction
TOGETHER = 50  # files of one request


class BeingRemoved(StoreAway):
    """A file that was just put is being deleted, and has to be put again in a moment."""

    def __init__(self) -> None:
        super().__init__("a file that was stored is being removed, from before")


class HeldTooLongAgo(StoreAway):
    """Files were held and not named in time: hold them again."""

    def __init__(self) -> None:
        super().__init__("storing took too long: whether all files are there must be looked up again")


@dataclass(frozen=True)
class Amount:
    """Some files. size in bytes."""

    files: int = 0
    size: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.files + other.files, self.size + other.size)


def named(session: Session, names: Collection[str]) -> set[str]:
    """Those of the files that something names."""
    rows = select(Artifact.sha256).where(Artifact.sha256.in_(names), Artifact.gone_at.is_(None))
    archives = select(Dataset.source).where(Dataset.origin == "upload")
    found = {*session.scalars(rows), *given(session), *(source["archive"] for source in session.scalars(archives))}
    return found.intersection(names)


def given(session: Session) -> set[str]:
    """The checkpoints that steps under way were given: perhaps the file of another step, which is none of their inputs."""
    perhaps = select(Step.params).where(Step.state.in_(LIVE_STEP), cast(Step.params, Text).contains('"checkpoint"'))
    return {params.get("teacher", {}).get("checkpoint") or "" for params in session.scalars(perhaps)} - {""}


def condemn(session: Session, files: Collection[Blob]) -> Amount:
    """Condemn those of the files that nothing names and that are not condemned yet."""
    lock_graph(session)
    sizes = {file.sha256: file.size for file in files}
    known = set(session.scalars(select(Condemned.sha256).where(Condemned.sha256.in_(sizes))))
    new = sizes.keys() - known - named(session, sizes)
    at = now(session)
    session.add_all([Condemned(sha256=sha256, size=sizes[sha256], at=at) for sha256 in sorted(new)])
    session.flush()
    return Amount(len(new), sum(sizes[sha256] for sha256 in new))


def spare(session: Session, names: Iterable[str]) -> datetime:
    """Let nobody delete these files for a while, if they are there; returns the moment for `require`. Raises `BeingRemoved`."""
    at = now(session)
    rows = Condemned.sha256.in_(list(names))
    if session.scalar(select(Condemned.sha256).where(rows).limit(1)) is not None:
        lock_graph(session)
        if session.scalar(select(Condemned.sha256).where(rows, Condemned.doomed_at > now(session) - STUCK).limit(1)) is not None:
            raise BeingRemoved
        session.execute(delete(Condemned).where(rows).execution_options(synchronize_session=False))
    return at


def hold(commit: Callable[[Callable[[Session], datetime]], datetime], store: Store, files: Mapping[str, tuple[Path, str]]) -> datetime:
    """Spare files that were just put, and put those again that were removed nevertheless; returns the moment for `require`.

    files: path and name of each by its sha256. Raises `BeingRemoved`, and what the store raises.
    """
    at = commit(lambda session: spare(session, files))
    for sha256 in store.missing(files):
        path, name = files[sha256]
        store.put(path, name=name)
    return at


def require(session: Session, held_at: datetime) -> None:
    """In a transaction that names files: that they were held not long ago. Raises `HeldTooLongAgo`."""
    lock_graph(session)
    if now(session) - held_at > PROMISE:
        raise HeldTooLongAgo


def doom(session: Session, grace: timedelta = GRACE) -> tuple[datetime, dict[str, int]]:
    """Mark some files whose time has come; the moment, and their sizes by their names. Those that have a name again are struck."""
    lock_graph(session)
    at = now(session)
    rows = select(Condemned.sha256, Condemned.size).where(_due(at, grace)).order_by(Condemned.at).limit(AT_ONCE)
    while found := dict(session.execute(rows).all()):
        kept = named(session, found)
        session.execute(delete(Condemned).where(Condemned.sha256.in_(kept)).execution_options(synchronize_session=False))
        if doomed := {sha256: size for sha256, size in found.items() if sha256 not in kept}:
            marked = update(Condemned).where(Condemned.sha256.in_(doomed)).values(doomed_at=at)
            session.execute(marked.execution_options(synchronize_session=False))
            return at, doomed
    return at, {}


def remove(make: sessionmaker[Session], store: Store, grace: timedelta = GRACE, rounds: int = 100_000) -> Amount:
    """Delete the files whose time has come, `AT_ONCE` a round; another call, or one after a crash, goes on. Raises `StoreAway`."""
    removed = Amount()
    for _ in range(rounds):
        began = time.monotonic()
        at, doomed = transact(make, lambda s: doom(s, grace))
        if not doomed:
            return removed
        names = list(doomed)
        for some in (names[i : i + TOGETHER] for i in range(0, len(names), TOGETHER)):
            if time.monotonic() - began > HURRY:
                return removed  # what is marked and not deleted is taken up when it is stuck
            store.remove(some)
            transact(make, lambda s, some=some, at=at: _forget(s, some, at))  # type: ignore[misc]
            removed += Amount(len(some), sum(doomed[sha256] for sha256 in some))
    return removed


def waiting(session: Session) -> Amount:
    """What is condemned, and not deleted yet."""
    return _sum(session, true())


def due(session: Session, grace: timedelta = GRACE) -> Amount:
    """What of it `remove` would look at now."""
    return _sum(session, _due(now(session), grace))


def _sum(session: Session, which: ColumnElement[bool]) -> Amount:
    files, size = session.execute(select(func.count(), func.sum(Condemned.size)).where(which)).one()
    return Amount(files, int(size or 0))


def _due(at: datetime, grace: timedelta) -> ColumnElement[bool]:
    return or_(and_(Condemned.doomed_at.is_(None), Condemned.at <= at - grace), Condemned.doomed_at <= at - STUCK)


def _forget(session: Session, names: Collection[str], at: datetime) -> None:
    rows = delete(Condemned).where(Condemned.sha256.in_(names), Condemned.doomed_at == at)
    session.execute(rows.execution_options(synchronize_session=False))
