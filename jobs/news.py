"""What has happened since, to anything: so that one look serves all who wait for news of something."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.models import Event

MOST = 1000  # events in one look


@dataclass(frozen=True)
class News:
    """last: the id of the newest event that is counted in. about: ids of jobs and steps that it concerns. more: there is more to read."""

    last: int
    about: frozenset[str]
    more: bool


def newest(session: Session) -> int:
    """The id of the latest event; 0 if there is none."""
    return session.scalar(select(func.max(Event.id))) or 0


def news(session: Session, after: int) -> News:
    """What happened after event `after`. Ids rise in the order of commits, so nothing is missed."""
    rows = session.execute(select(Event.id, Event.job_id, Event.step_id).where(Event.id > after).order_by(Event.id).limit(MOST)).all()
    about = frozenset(one for row in rows for one in (row.job_id, row.step_id) if one is not None)
    return News(rows[-1].id if rows else after, about, len(rows) == MOST)
