"""Which ready step comes next: the most urgent first, then in turns between owners, then between jobs, then the oldest.

Between owners: who has the fewest steps running on the queue; among equals who was served longest ago, beginning with those who never
were, by name. So one worker alternates between owners, however many jobs one of them posted, and nobody who waits is passed by twice
by another who has no less running. A step that jobs of several owners share counts for the one of `Step.owner`.

A step's turn is how many steps of its job run, or wait before it, on its queue. So the first waiting steps of all jobs of an owner
come before the second of any, a job that has much running waits for those that have little, and a claim changes no other step's turn.
"""

from collections import Counter, defaultdict
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from sqlalchemy import CTE, ColumnElement, Select, and_, func, select, text, update
from sqlalchemy.orm import Session, aliased

from jobs.models import LIVE_JOB, LIVE_STEP, Job, JobStep, Step

_MANY = 5000  # ids in one statement; SQLite takes 32,766
_URGENT, _FIRST, _LATER, _SERVED = (aliased(Step) for _ in range(4))  # made once: to make one takes as long as to ask


@lru_cache(maxsize=64)  # to put it together takes longer than to ask
def next_step(queue: str, engine: str) -> Select[str]:
    """The id of the step that a worker of `engine` on `queue` has to claim next: a few searches of indexes for each owner who waits."""
    ready = select(_URGENT.priority).where(is_ready(_URGENT, queue, engine))
    urgent = ready.order_by(_URGENT.priority.desc()).limit(1).scalar_subquery()
    waiting, running = waiting_owners(queue, engine, urgent), running_steps(queue).subquery()
    owners = select(waiting.c.owner).outerjoin(running, running.c.owner == waiting.c.owner).where(waiting.c.owner.is_not(None))
    fewest, longest_ago = func.coalesce(running.c.number, 0), last_served(waiting.c.owner, queue).nulls_first()
    owner = owners.order_by(fewest, longest_ago, waiting.c.owner).limit(1).scalar_subquery()
    chosen = select(Step.id).where(is_ready(Step, queue, engine), Step.priority == urgent, Step.owner == owner)
    return chosen.order_by(Step.turn, Step.ready_at, Step.id).limit(1)


def is_ready(step: Any, queue: str, engine: str) -> ColumnElement[bool]:
    """Whether workers of `engine` on `queue` may claim the step (`Step` or an alias of it)."""
    return and_(step.state == "ready", step.queue == queue, step.engine == engine)


def waiting_owners(queue: str, engine: str, priority: Any) -> CTE:
    """Each owner of ready steps of one priority, and a last row without one. The index is searched once for each, however many wait."""
    first = select(_FIRST.owner).where(is_ready(_FIRST, queue, engine), _FIRST.priority == priority).order_by(_FIRST.owner).limit(1)
    found = select(first.scalar_subquery().label("owner")).cte("owners", recursive=True)
    later = select(_LATER.owner).where(is_ready(_LATER, queue, engine), _LATER.priority == priority, _LATER.owner > found.c.owner)
    following = later.order_by(_LATER.owner).limit(1).scalar_subquery()
    return found.union_all(select(following).where(found.c.owner.is_not(None)))


def running_steps(queue: str) -> Select[str, int]:
    """How many steps each owner has running on a queue: owner, number."""
    counted = select(Step.owner, func.count().label("number"))
    # Spelled out, or a planner does not see that the index of what runs is enough.
    return counted.where(text("steps.state = 'running'"), Step.queue == queue).group_by(Step.owner)


def last_served(owner: Any, queue: str) -> Any:
    """When a step of the owner was claimed last on the queue."""
    starts = select(_SERVED.started_at).where(_SERVED.owner == owner, _SERVED.queue == queue, _SERVED.started_at.is_not(None))
    return starts.order_by(_SERVED.started_at.desc()).limit(1).scalar_subquery()


def line_up(session: Session, job_ids: Collection[str], fresh: Collection[str]) -> set[str]:
    """Count the turns of what the live ones of the jobs wait for; `fresh` are the steps that have just become ready.

    Call it when a step of the jobs becomes ready or runs no more. A step that waits already never falls back; one that several jobs
    share has the best turn that any of them gives it. Returns the jobs of which something waits or runs.
    """
    columns = (JobStep.job_id, Step.id, Step.queue, Step.state, Step.priority, Step.turn, Step.ready_at)
    query = select(*columns).join(JobStep, JobStep.step_id == Step.id).join(Job, Job.id == JobStep.job_id)
    # Not by the index of states: a planner that last saw a short queue would read all that waits now, whoever's it is.
    counts = Step.state.concat("").in_(("ready", "running"))
    rows = session.execute(query.where(JobStep.job_id.in_(job_ids), Job.state.in_(LIVE_JOB), counts).distinct()).all()
    taken = Counter((row.job_id, row.queue) for row in rows if row.state == "running")
    waiting = [row for row in rows if row.state == "ready"]
    offered: dict[str, list[int]] = defaultdict(list)
    for row in sorted(waiting, key=lambda row: (-row.priority, row.ready_at, row.id)):
        offered[row.id].append(taken[row.job_id, row.queue])
        taken[row.job_id, row.queue] += 1
    before = {row.id: row.turn for row in waiting}
    new = set(fresh)
    turns = {id: min(found if id in new else [*found, before[id]]) for id, found in offered.items()}
    if placed := [{"id": id, "turn": turns[id]} for id in new & turns.keys()]:
        session.execute(update(Step), placed)
    nearer: dict[int, list[str]] = defaultdict(list)  # mostly all by one: a step of their job has ended
    for id, turn in turns.items():
        if id not in new and turn != before[id]:
            nearer[before[id] - turn].append(id)
    for by, ids in nearer.items():
        for start in range(0, len(ids), _MANY):
            change = update(Step).where(Step.id.in_(ids[start : start + _MANY])).values(turn=Step.turn - by)
            session.execute(change.execution_options(synchronize_session=False))
    return {row.job_id for row in rows}


def reprioritise(session: Session, job_ids: Collection[str]) -> None:
    """Make each unfinished step of the jobs as urgent as the most urgent live job that needs it, and its owner's."""
    query = select(Step.id).join(JobStep, JobStep.step_id == Step.id).where(JobStep.job_id.in_(job_ids))
    unfinished = session.scalars(query.where(Step.state.concat("").in_(LIVE_STEP)).distinct()).all()
    needed_by = and_(JobStep.job_id == Job.id, JobStep.step_id == Step.id, Job.state.in_(LIVE_JOB))
    urgent = select(func.max(Job.priority)).where(needed_by).correlate(Step).scalar_subquery()
    owner = select(Job.owner).where(needed_by).order_by(Job.priority.desc(), Job.id).limit(1).correlate(Step).scalar_subquery()
    values = {"priority": func.coalesce(urgent, 0), "owner": func.coalesce(owner, Step.owner)}
    for start in range(0, len(unfinished), _MANY):
        change = update(Step).where(Step.id.in_(unfinished[start : start + _MANY])).values(**values)
        session.execute(change.execution_options(synchronize_session=False))
