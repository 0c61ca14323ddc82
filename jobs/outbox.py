"""Doorbells: rows that say "this step is ready", written with the step and sent to the broker afterwards.

A doorbell may be sent twice, late, or get lost: the claim decides, and `ring_again` repeats.
"""

from collections.abc import Callable, Collection
from datetime import timedelta

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.orm import Session, sessionmaker

from jobs.database import lock_graph, now, transact
from jobs.models import Doorbell, Step

LONGEST_DOUBLING = 5  # a step is rung again after `after` seconds, then twice that, ... up to 32 times that


def relay(sessions: sessionmaker[Session], send: Callable[[str, str], None], limit: int = 100) -> int:
    """Call `send(step_id, queue)` for the waiting doorbells, most urgent first; returns how many were sent.

    No transaction is open while sending. What `send` raises passes through, after the ones sent before it are marked.
    """
    waiting = transact(sessions, lambda session: pending(session, limit))
    sent: list[int] = []
    try:
        for doorbell_id, step_id, queue in waiting:
            send(step_id, queue)
            sent.append(doorbell_id)
    finally:
        if sent:
            transact(sessions, lambda session: mark_sent(session, sent))
    return len(sent)


def pending(session: Session, limit: int = 100) -> list[tuple[int, str, str]]:
    """(doorbell, step, queue) of doorbells to send, most urgent first."""
    query = select(Doorbell.id, Step.id, Step.queue).join(Step, Step.id == Doorbell.step_id).order_by(Step.priority.desc(), Doorbell.id)
    return [(doorbell_id, step_id, queue) for doorbell_id, step_id, queue in session.execute(query.limit(limit))]


def mark_sent(session: Session, doorbells: Collection[int]) -> None:
    """Remove doorbells that were sent, and note on their steps when."""
    steps = select(Doorbell.step_id).where(Doorbell.id.in_(doorbells))
    rung = update(Step).where(Step.id.in_(steps)).values(rings=Step.rings + 1, rung_at=now(session))
    session.execute(rung.execution_options(synchronize_session=False))
    session.execute(delete(Doorbell).where(Doorbell.id.in_(doorbells)))


def ring_again(session: Session, *, after: float = 30.0, empty: Collection[str] = (), limit: int = 1000) -> int:
    """Add doorbells for steps that are ready, have none waiting, and were rung more than `after` seconds ago; returns how many.

    A long queue is no reason to fill the broker with repeats, so the wait doubles with each ring. `empty` names queues that the
    caller saw empty at the broker: there a doorbell must have got lost, and the wait does not double.
    """
    lock_graph(session)
    at = now(session)
    since = at - timedelta(seconds=after)
    silent = ~select(Doorbell.id).where(Doorbell.step_id == Step.id).exists()
    again = or_(
        Step.rung_at.is_(None),
        and_(Step.queue.in_(empty), Step.rung_at < since),
        *(and_(Step.rings <= 1 + n, Step.rung_at < at - timedelta(seconds=after * 2**n)) for n in range(LONGEST_DOUBLING)),
        Step.rung_at < at - timedelta(seconds=after * 2**LONGEST_DOUBLING),
    )
    query = select(Step.id).where(Step.state == "ready", Step.ready_at < since, again, silent)
    due = session.scalars(query.order_by(Step.priority.desc(), Step.ready_at, Step.id).limit(limit)).all()
    session.add_all([Doorbell(step_id=step_id, created_at=at) for step_id in due])
    return len(due)


def ring_for(session: Session, engine: str, queues: Collection[str], limit: int = 1000) -> int:
    """Add doorbells for the steps of an engine that are ready on some queues, as if none had been rung yet; returns how many."""
    lock_graph(session)
    silent = ~select(Doorbell.id).where(Doorbell.step_id == Step.id).exists()
    query = select(Step.id).where(Step.state == "ready", Step.engine == engine, Step.queue.in_(queues), silent)
    due = session.scalars(query.order_by(Step.priority.desc(), Step.ready_at, Step.id).limit(limit)).all()
    fresh = update(Step).where(Step.id.in_(due)).values(rings=0)
    session.execute(fresh.execution_options(synchronize_session=False))
    at = now(session)
    session.add_all([Doorbell(step_id=step_id, created_at=at) for step_id in due])
    return len(due)
