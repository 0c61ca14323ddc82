"""Where a step stands in its queue: how many are claimed before it, counted rather than walked through."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Integer, and_, cast, func, literal, null, or_, select, union_all
from sqlalchemy.orm import Session, aliased

from jobs.models import Step
from jobs.order import is_ready, last_served, running_steps, waiting_owners

_OTHER = aliased(Step)
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass
class _Owner:
    """Of one owner, on one queue: running, and what rises with the moment at which he was served last."""

    running: int = 0
    served: tuple[Any, ...] = ()


def rank(step: Step) -> tuple[int, int, datetime | None, str]:
    """By this, the ready steps of one owner on one queue are in the order in which they are claimed."""
    return (-step.priority, step.turn, step.ready_at, step.id)


def steps_ahead(session: Session, step: Step) -> int:
    """How many steps are claimed before a ready step, by workers of the same queue and engine, if nothing else happens meanwhile.

    Each claim gives its owner one more running step. So claims are in the order of what their owner had running before each; among
    equals who had the most from the beginning comes first, since he was served before the others came so far; then who was served
    longest ago. Two statements, whose cost is that of counting what is ahead.
    """
    owners, levels = _standing(session, step)
    before = levels.pop(step.priority)[step.owner]
    first = 0
    for turn, priority in enumerate(sorted(levels, reverse=True), start=1):
        for name, number in levels[priority].items():
            owner = owners[name]
            owner.served = (turn, owner.running + number, -owner.running, owner.served)
            owner.running += number
            first += number
    mine = owners[step.owner]
    level = mine.running + before
    for name, served, waiting in _others(session, step, level + 1):
        owner = owners[name]
        owner.served = owner.served or _served(served, name)
        earlier = level - owner.running  # claims of his after which he has no more running than we have before ours
        if earlier >= 0:
            tie = waiting > earlier and (-owner.running, owner.served) < (-mine.running, mine.served)
            first += min(waiting, earlier) + tie
    return first + before


def _standing(session: Session, step: Step) -> tuple[dict[str, _Owner], dict[int, Counter[str]]]:
    """Every owner who has steps running or more urgent ones waiting, and this one; and by priority and owner, how many wait before it
    of the more urgent and of his own."""
    here = is_ready(Step, step.queue, step.engine)
    urgent = select(Step.priority, Step.owner, func.count().label("number"), last_served(Step.owner, step.queue).label("served"))
    urgent = urgent.where(here, Step.priority > step.priority).group_by(Step.priority, Step.owner)
    mine = select(literal(step.priority), literal(step.owner), func.count(), last_served(step.owner, step.queue))
    mine = mine.where(here, Step.priority == step.priority, Step.owner == step.owner, _sooner(step))
    running = running_steps(step.queue).subquery()
    busy = select(cast(null(), Integer), running.c.owner, running.c.number, null())
    owners: dict[str, _Owner] = defaultdict(_Owner)
    levels: dict[int, Counter[str]] = defaultdict(Counter)
    for priority, name, number, served in session.execute(union_all(urgent, mine, busy)):
        if priority is None:
            owners[name].running = number
        else:
            owners[name].served = _served(served, name)
            levels[priority][name] = number
    return owners, levels


def _sooner(step: Step) -> ColumnElement[bool]:
    """Of the same owner and priority, those claimed before it."""
    older = or_(Step.ready_at < step.ready_at, and_(Step.ready_at == step.ready_at, Step.id < step.id))
    return or_(Step.turn < step.turn, and_(Step.turn == step.turn, older))


def _others(session: Session, step: Step, most: int) -> list[tuple[str, datetime | None, int]]:
    """Other owners of ready steps of the same priority: name, when last served, how many wait; counted up to `most`."""
    found = waiting_owners(step.queue, step.engine, step.priority)
    theirs = select(literal(1).label("one")).where(is_ready(_OTHER, step.queue, step.engine), _OTHER.priority == step.priority)
    # In the order of the index: else a planner that sees many expects the first of them early in the table, where there may be none.
    some = theirs.where(_OTHER.owner == found.c.owner).correlate(found).order_by(_OTHER.turn).limit(most).subquery()
    waiting = select(func.count()).select_from(some).scalar_subquery()
    query = select(found.c.owner, last_served(found.c.owner, step.queue), waiting)
    return [(name, served, number) for name, served, number in session.execute(query.where(found.c.owner != step.owner))]


def _served(at: datetime | None, name: str) -> tuple[Any, ...]:
    return (0, at or _NEVER, name)
