"""Room in the artifact store: what does not fit is refused while there is still some left."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.errors import NoRoom
from jobs.models import Artifact
from jobs.store import Store


def require(session: Session, store: Store, needed: int, used: int | None = None) -> None:
    """Raises `NoRoom` unless `needed` more bytes fit on the store's disk and into its quota. Nothing always fits.

    used: `used_bytes` of a moment ago, for who must not keep others waiting.
    """
    if needed == 0:
        return
    free = store.free()
    if free is not None and needed > free:
        raise NoRoom(needed, f"its disk has {max(free, 0):,} to spare", "free some disk space and try again")
    if not store.quota:
        return
    used = used_bytes(session) if used is None else used
    if needed > store.quota - used:
        said = f"it holds {used:,} of the {store.quota:,} that it may"
        raise NoRoom(needed, said, "raise POTSTILL_STORE_QUOTA_BYTES, or ask for less")


def used_bytes(session: Session) -> int:
    """Bytes of all files that have a row and are not gone; one of two names counts once.

    All rows are read for it: nobody is to wait for it.
    """
    there = select(Artifact.sha256, func.max(Artifact.size).label("size")).where(Artifact.gone_at.is_(None))
    files = there.group_by(Artifact.sha256).subquery()
    return int(session.scalar(select(func.sum(files.c.size))) or 0)
