"""How long a job will still take, as a range, from what steps of the same shapes took before."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean, pstdev

from sqlalchemy.orm import Session

from jobs.bodies import Eta, Queue
from jobs.durations import Durations, low_and_high, past_runs
from jobs.models import LIVE_STEP, Step
from jobs.recent import Recent
from jobs.workers import Crew

_SPREAD = 1.28  # deviations from the mean to the 10th and to the 90th percentile


@dataclass(frozen=True)
class _Range:
    """Seconds, from a low guess to a high one."""

    low: float
    high: float


@dataclass(frozen=True)
class _Hands:
    """The workers that may run some steps of a job: most, if it had all to itself; least, with no more than it has now."""

    most: int
    least: int


def eta(
    session: Session,
    steps: Sequence[Step],
    needs: Mapping[str, Sequence[str]],
    crews: Sequence[Crew],
    waits: tuple[Step, Queue] | None,
    at: datetime,
    recent: Recent,
) -> Eta | None:
    """The time to the end of a live job, or None if a step of it has no past run to compare with, or nobody is there to run it.

    steps: the job's, each once, in the order of its plan; waits: the next one, and its place, if nothing of the job runs. The longest
    path through what is left, or all of it over the workers that are there, whichever is longer: for the low guess all of them, for the
    high one those that run the job's steps now or are idle. Before it, what is ahead in the queue at the pace of its latest steps. What
    is posted later is not in it. One statement, or two if steps wait for others.
    """
    left = [step for step in steps if step.state in LIVE_STEP]
    parts = [[step for step in left if step.queue == queue] for queue in sorted({step.queue for step in left})]
    if not all(_hands(part, crews).most for part in parts):
        return None
    shapes, queue = frozenset(step.shape for step in left), waits[0].queue if waits else None
    past, pace = recent.get(session, ("past", shapes, queue), lambda s: past_runs(s, shapes, queue))
    ranges = {step.id: found for step in left if (found := _left(step, past, at)) is not None}
    wait = _wait(waits[0], waits[1], crews, pace) if waits else _Range(0.0, 0.0)
    if not left or len(ranges) < len(left) or wait is None:
        return None
    path = _longest_path(left, needs, ranges)
    low, high = path.low, path.high
    for part in (*parts, left):
        hands = _hands(part, crews)
        low = max(low, sum(ranges[step.id].low for step in part) / hands.most)
        high = max(high, sum(ranges[step.id].high for step in part) / hands.least)
    runs = min(len(past[step.shape]) for step in left)
    return Eta(low_seconds=round(low + wait.low, 1), high_seconds=round(high + wait.high, 1), runs=runs)


def _left(step: Step, past: Durations, at: datetime) -> _Range | None:
    """The time to the end of a step, once it begins: of one that runs, as those took that took longer than it has by now, or else by its
    own rate. None if that is not known."""
    if not past.get(step.shape):
        return None
    if step.state != "running" or step.started_at is None:
        return _Range(*low_and_high(past[step.shape]))
    spent = (at - step.started_at).total_seconds()
    if longer := [seconds - spent for seconds in past[step.shape] if seconds > spent]:
        return _Range(*low_and_high(longer))
    own = seconds_left(step, at)  # it has outlasted all there is to compare with
    return None if own is None else _Range(own, own)


def seconds_left(step: Step, at: datetime) -> float | None:
    """Seconds to the end of a running step at its present rate, less those that went by since its last report; None if it tells none."""
    if step.state != "running" or not step.rate or step.total is None or step.done is None or step.progress_at is None:
        return None
    return round(max((step.total - step.done) / step.rate - (at - step.progress_at).total_seconds(), 0.0), 1)


def _hands(steps: Sequence[Step], crews: Sequence[Crew]) -> _Hands:
    queues, engines = {step.queue for step in steps}, {step.engine for step in steps}
    fit = [crew for crew in crews if queues.intersection(crew.queues) and crew.engine in engines]
    running = sum(step.state == "running" for step in steps)
    most = max(sum(crew.workers for crew in fit), running)
    return _Hands(most, max(1, min(most, running + sum(crew.idle for crew in fit))))


def _wait(first: Step, place: Queue, crews: Sequence[Crew], pace: Sequence[float]) -> _Range | None:
    """The time until a step that waits is claimed: as many steps must end as are ahead, less the workers that are idle."""
    fit = [crew for crew in crews if first.queue in crew.queues and crew.engine == first.engine]
    workers, ends = sum(crew.workers for crew in fit), place.ahead + 1 - sum(crew.idle for crew in fit)
    if ends <= 0:
        return _Range(0.0, 0.0)
    if not pace or workers == 0:
        return None
    mean, spread = fmean(pace), _SPREAD * pstdev(pace)
    # The first of them to end has begun already, nobody knows how long ago.
    low = ((ends - 1) * mean - math.sqrt(ends - 1) * spread) / workers
    return _Range(max(low, 0.0), (ends * mean + math.sqrt(ends) * spread) / workers)


def _longest_path(left: Sequence[Step], needs: Mapping[str, Sequence[str]], ranges: dict[str, _Range]) -> _Range:
    """The time to the last end if there were workers for all."""
    ends: dict[str, _Range] = {}
    for step in left:  # in the order of the plan: what a step needs comes before it
        before = [ends[needed] for needed in needs.get(step.id, ()) if needed in ends]
        low, high = max((one.low for one in before), default=0.0), max((one.high for one in before), default=0.0)
        ends[step.id] = _Range(low + ranges[step.id].low, high + ranges[step.id].high)
    return _Range(max(one.low for one in ends.values()), max(one.high for one in ends.values()))
