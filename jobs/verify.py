"""Whether the files in the artifact store are still what they were: damage is found that nobody would have met for long.

A damaged file is set aside, and the steps that left it are lost, as when a worker meets it: the next job that needs it makes it again.
One that is missing is only told. Whoever posts a job that relies on it finds that out (`submit.decide`), and a store that was not mounted
when somebody looked costs nobody the work of years.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from jobs.bodies import Body
from jobs.collect import PART, START, Part, within
from jobs.database import transact
from jobs.models import Artifact, JobStep, Step
from jobs.retention import lose_file
from jobs.store import Store, Stored

AT_ONCE = 4  # files that are read at once
HANDFUL = 64 << 20  # bytes that are read before a call may be broken off; a larger file is read to its end
MANY = 200  # names in one question, files in one handful
END = "f" * 64  # behind the names of all files
log = logging.getLogger(__name__)


class Naming(Body):
    """An artifact that names a file."""

    id: str
    name: str
    kind: str
    step: str | None = Field(description="name of the step that left it, in that job; null for what was sent")
    job_id: str | None = Field(description="the first job that had the step made")


class BadFile(Body):
    """A file that is not what it was."""

    sha256: str
    named_by: list[Naming] = Field(description="empty: an attempt left it that came to nothing, and nothing is lost")


class Verified(Part):
    """What was read, and what was wrong."""

    files: int
    bytes: int
    damaged: list[BadFile] = Field(description="set aside; the steps that left them run again for the next job that needs them")
    missing: list[BadFile] = Field(description="named, and not in the store; but for those of steps that are known to have lost theirs")


@dataclass
class _Seen:
    files: int = 0
    bytes: int = 0
    damaged: list[BadFile] = field(default_factory=list)
    missing: list[BadFile] = field(default_factory=list)


def verify(
    read: sessionmaker[Session], write: sessionmaker[Session], store: Store, *, cursor: str | None = None, seconds: float = PART
) -> Verified:
    """Read the files of the store, a few at once, and set aside those whose bytes do not have their name.

    After so many seconds, or the file that was being read then, it says where to go on from: another call does, with that `cursor`.
    It may be interrupted, and run twice at once. Raises `StoreAway`.
    """
    seen = _Seen()
    place = within(seconds, _walk(read, write, store, cursor or START, seen))
    wrong = {"damaged": seen.damaged, "missing": seen.missing}
    return Verified(has_more=place is not None, next_cursor=place, files=seen.files, bytes=seen.bytes, **wrong)


def _walk(read: sessionmaker[Session], write: sessionmaker[Session], store: Store, place: str, seen: _Seen) -> Iterator[str]:
    for some in _handfuls(store.listing(place)):
        names = [one.sha256 for one in some]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            bad = [name for name, whole in zip(names, pool.map(store.verify, names), strict=True) if not whole]
        if damaged := [name for name in bad if store.set_aside(name)]:
            seen.damaged += transact(write, lambda s, damaged=damaged: _lose(s, damaged))  # type: ignore[misc]
        seen.files += len(some)
        seen.bytes += sum(one.size for one in some)
        list(_missing(read, store, place, names, seen))  # to the end of them, or files would have to be read again
        place = names[-1]
        yield place
    yield from _missing(read, store, place, [END], seen)


def _handfuls(listing: Iterable[Sequence[Stored]]) -> Iterator[list[Stored]]:
    for some in listing:
        handful: list[Stored] = []
        size = 0
        for one in some:
            if handful and (len(handful) == MANY or size + one.size > HANDFUL):
                yield handful
                handful, size = [], 0
            handful.append(one)
            size += one.size
        if handful:
            yield handful


def _lose(session: Session, damaged: Collection[str]) -> list[BadFile]:
    for sha256 in damaged:
        lose_file(session, sha256)
    found = _told(session, damaged)
    for one in found:
        names = ", ".join(by.id for by in one.named_by) or "nothing names it"
        log.warning("stored file %s is damaged, and was set aside: %s", one.sha256[:12], names)
    return found


def _missing(read: sessionmaker[Session], store: Store, after: str, listed: Sequence[str], seen: _Seen) -> Iterator[str]:
    """Look for the files that are named and were not listed, between `after` and the last that was."""
    upto, known = listed[-1], set(listed)
    while True:
        with read() as session:
            names = _named(session, after, upto)
        if gone := store.missing(set(names) - known):
            with read() as session:
                seen.missing += _told(session, gone)
        if len(names) < MANY:
            return
        after = names[-1]
        yield after


def _named(session: Session, after: str, upto: str) -> list[str]:
    """The first names behind `after`, up to `upto`, of files that should be there: sent, or of a step that is not lost."""
    rows = select(Artifact.sha256).outerjoin(Step, Step.id == Artifact.step_id)
    rows = rows.where(Artifact.gone_at.is_(None), Step.lost_at.is_(None), Artifact.sha256 > after, Artifact.sha256 <= upto)
    return list(session.scalars(rows.order_by(Artifact.sha256).distinct().limit(MANY)))


def _told(session: Session, names: Collection[str]) -> list[BadFile]:
    """Who names them."""
    named_by: dict[str, dict[str, Naming]] = {sha256: {} for sha256 in sorted(names)}
    rows = select(Artifact, JobStep.name, JobStep.job_id).outerjoin(JobStep, JobStep.step_id == Artifact.step_id)
    rows = rows.where(Artifact.sha256.in_(names), Artifact.gone_at.is_(None)).order_by(JobStep.cached, JobStep.job_id)
    for file, step, job_id in session.execute(rows):
        named_by[file.sha256].setdefault(file.id, Naming(id=file.id, name=file.name, kind=file.kind, step=step, job_id=job_id))
    return [BadFile(sha256=sha256, named_by=list(by.values())) for sha256, by in named_by.items()]
