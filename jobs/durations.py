"""How long steps take: what runs of the same shape took before."""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Select, literal, select, union_all
from sqlalchemy.orm import Session

from ddcore.checks import digest
from ddcore.plan import STEP_VERSION, Plan
from jobs.models import Step

RUNS = 20  # of each shape, the latest
_CHANCE = ("seed", "seeds", "run", "first")  # params that say which one it is, and not how much there is to do
_MANY = 100  # shapes in one statement; SQLite joins 500

Durations = dict[str, list[float]]


def shapes(plan: Plan) -> dict[str, str]:
    """Of each step, by its key, what names all those that take about as long: of equal params but for seeds and the place of a shard,
    on inputs of equal shapes, by the same version of the engine.
    """
    named: dict[str, str] = {}
    for step in plan:
        params = {name: value for name, value in step.params.items() if name not in _CHANCE}
        inputs = {role: [named[name] for name in names] for role, names in step.inputs.items()}
        named[step.name] = digest({"kind": step.kind, "version": STEP_VERSION[step.kind], "params": params, "inputs": inputs})
    return {step.key: named[step.name] for step in plan}


def past_runs(session: Session, wanted: Collection[str], queue: str | None = None) -> tuple[Durations, list[float]]:
    """Seconds that the latest runs of each shape took, and those of the latest on a queue, whatever their shapes: mostly one statement.

    Only runs that succeeded at their first attempt: a later one may have gone on from a checkpoint.
    """
    runs = [_latest(shape, Step.shape == shape) for shape in wanted if shape]
    if queue is not None:
        runs.append(_latest("", Step.queue == queue))
    found: Durations = defaultdict(list)
    for start in range(0, len(runs), _MANY):
        for shape, started, finished in session.execute(union_all(*runs[start : start + _MANY])):
            if started is not None and finished is not None:
                found[shape].append((finished - started).total_seconds())
    return found, found.pop("", [])


def _latest(name: str, which: ColumnElement[bool]) -> Select[str, datetime | None, datetime | None]:
    done = select(literal(name).label("name"), Step.started_at, Step.finished_at)
    done = done.where(which, Step.state == "succeeded", Step.attempt == 1)
    rows = done.order_by(Step.finished_at.desc()).limit(RUNS).subquery()
    return select(rows.c.name, rows.c.started_at, rows.c.finished_at)


def low_and_high(values: Sequence[float]) -> tuple[float, float]:
    """The 10th and 90th percentile of at least one value, between neighbours where they fall between."""
    ordered = sorted(values)
    return _percentile(ordered, 0.1), _percentile(ordered, 0.9)


def _percentile(ordered: Sequence[float], part: float) -> float:
    place = part * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
