"""How long steps take: what runs of the same shape took before."""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import CompoundSelect, bindparam, literal, select, union_all
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
    names = [shape for shape in wanted if shape]
    found: Durations = defaultdict(list)
    for start in range(0, max(len(names), 1), _MANY):
        some = names[start : start + _MANY]
        also = queue if start == 0 else None
        values = {f"shape_{n}": shape for n, shape in enumerate(some)} | ({} if also is None else {"queue": also})
        for n, started, finished in session.execute(_latest(len(some), also is not None), values) if values else ():
            found[some[n] if n >= 0 else ""].append((finished - started).total_seconds())
    return found, found.pop("", [])


@lru_cache(maxsize=256)  # to put it together takes longer than to ask
def _latest(count: int, with_queue: bool) -> CompoundSelect[Any]:
    """Number, start and end of the latest runs of so many shapes, and of a queue under the number -1."""
    which = {n: Step.shape == bindparam(f"shape_{n}") for n in range(count)}
    if with_queue:
        which[-1] = Step.queue == bindparam("queue")
    parts = []
    for n, wanted in which.items():
        done = select(literal(n).label("number"), Step.started_at, Step.finished_at)
        done = done.where(wanted, Step.state == "succeeded", Step.attempt == 1)
        rows = done.order_by(Step.finished_at.desc()).limit(RUNS).subquery()
        parts.append(select(rows.c.number, rows.c.started_at, rows.c.finished_at))
    return union_all(*parts)


def low_and_high(values: Sequence[float]) -> tuple[float, float]:
    """The 10th and 90th percentile of at least one value, between neighbours where they fall between."""
    ordered = sorted(values)
    return _percentile(ordered, 0.1), _percentile(ordered, 0.9)


def _percentile(ordered: Sequence[float], part: float) -> float:
    place = part * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
