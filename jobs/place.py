"""Where a step stands in its queue: how many are claimed before it, counted rather than walked through."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Integer, cast, func, null, select, union_all
from sqlalchemy.orm import Session

from jobs.models import Step
from jobs.order import is_ready, last_served, running_steps
from jobs.recent import FRESH, Recent

_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Standing:
    """What waits on a queue for workers of one engine, and for whom steps run there.

    running: steps of each owner; waiting: by priority and owner; served: when each owner who waits was served last, if ever.
    """

    running: Mapping[str, int]
    waiting: Mapping[int, Mapping[str, int]]
    served: Mapping[str, datetime | None]


@dataclass
class _Owner:
    """Of one owner, on one queue: running, and what rises with the moment at which he was served last."""

    running: int
    served: tuple[Any, ...]


def rank(step: Step) -> tuple[int, int, datetime | None, str]:
    """By this, the ready steps of one owner on one queue are in the order in which they are claimed."""
    return (-step.priority, step.turn, step.ready_at, step.id)


def steps_ahead(session: Session, step: Step, recent: Recent = FRESH) -> int:
    """How many steps are claimed before a ready step, by workers of the same queue and engine, if nothing else happens meanwhile.

    Each claim gives its owner one more running step. So claims are in the order of what their owner had running before each; among
    equals who had the most from the beginning comes first, since he was served before the others came so far; then who was served
    longest ago. Two statements, whose cost is that of counting what waits, and whose answers serve all who ask in a moment.
    """
    queue, engine = step.queue, step.engine
    standing = recent.get(session, ("standing", queue, engine), lambda s: _standing(s, queue, engine))
    of = (queue, engine, step.priority, step.owner)
    line = recent.get(session, ("line", *of), lambda s: _line(s, *of), lambda line: step.id in line)
    owners: dict[str, _Owner] = {}

    def owner(name: str) -> _Owner:
        return owners.setdefault(name, _Owner(standing.running.get(name, 0), (0, standing.served.get(name) or _NEVER, name)))

    before = line.get(step.id, len(line))
    first = 0
    for turn, priority in enumerate(sorted((one for one in standing.waiting if one > step.priority), reverse=True), start=1):
        for name, number in standing.waiting[priority].items():
            one = owner(name)
            one.served = (turn, one.running + number, -one.running, one.served)
            one.running += number
            first += number
    mine = owner(step.owner)
    level = mine.running + before
    for name, number in standing.waiting.get(step.priority, {}).items():
        one = owner(name)
        earlier = level - one.running  # claims of his after which he has no more running than we have before ours
        if earlier >= 0 and one is not mine:
            tie = number > earlier and (-one.running, one.served) < (-mine.running, mine.served)
            first += min(number, earlier) + tie
    return first + before


def _standing(session: Session, queue: str, engine: str) -> Standing:
    ready = select(Step.priority, Step.owner, func.count().label("number"), last_served(Step.owner, queue).label("served"))
    ready = ready.where(is_ready(Step, queue, engine)).group_by(Step.priority, Step.owner)
    busy = running_steps(queue).subquery()
    running, waiting, served = dict[str, int](), dict[int, dict[str, int]](), dict[str, datetime | None]()
    for priority, name, number, at in session.execute(union_all(ready, select(cast(null(), Integer), busy.c.owner, busy.c.number, null()))):
        if priority is None:
            running[name] = number
        else:
            waiting.setdefault(priority, {})[name] = number
            served[name] = at
    return Standing(running, waiting, served)


def _line(session: Session, queue: str, engine: str, priority: int, owner: str) -> dict[str, int]:
    """The ready steps of a queue, an engine, a priority and an owner, and how many of them are claimed before each."""
    alike = select(Step.id).where(is_ready(Step, queue, engine), Step.priority == priority, Step.owner == owner)
    return {step_id: before for before, step_id in enumerate(session.scalars(alike.order_by(Step.turn, Step.ready_at, Step.id)))}
