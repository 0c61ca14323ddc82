"""What a running step says of itself: progress, curves, notes; written in batches, behind the fence."""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import and_, delete, insert, or_, select, update
from sqlalchemy.orm import Session

from ddcore.events import Event
from jobs.bodies import Series
from jobs.claims import holds
from jobs.database import lock_graph, now
from jobs.errors import LeaseLost
from jobs.graph import write_event
from jobs.models import JobStep, Metric, Step

SMOOTHING = 0.3  # weight of the newest rate
LONGEST_NOTE = 2_000  # characters


def record(session: Session, step_id: str, attempt: int, events: Sequence[Event]) -> None:
    """Write a batch of `ddcore.events` in the caller's transaction: the last progress, all metrics, all notes. Raises `LeaseLost`.

    A curve is continuous across attempts: points of an earlier attempt at or after the first x of the batch are replaced.
    """
    notes = [event["text"] for event in events if event["type"] == "note"]
    if notes:
        lock_graph(session)
    # The row stays locked until the end, so that nobody takes the step over between the check and the writing.
    step = session.scalar(select(Step).where(holds(step_id, attempt)).with_for_update().execution_options(populate_existing=True))
    if step is None:
        raise LeaseLost(step_id, attempt)
    at = now(session)
    progress = [event for event in events if event["type"] == "progress"]
    if progress:
        _progress(session, step, progress[-1], at)
    curves: dict[str, dict[float, float | None]] = defaultdict(dict)
    for event in events:
        if event["type"] == "metric" and math.isfinite(event["x"]):
            curves[event["name"]][event["x"]] = event["value"] if math.isfinite(event["value"]) else None
    for name, points in curves.items():
        _points(session, step_id, attempt, name, points)
    for text in notes:
        write_event(session, "note", at, step_id=step_id, text=text.replace("\x00", "")[:LONGEST_NOTE])


def _progress(session: Session, step: Step, event: Event, at: datetime) -> None:
    done, rate = event["done"], step.rate
    if step.done is not None and step.progress_at is not None and step.unit == event["unit"] and done > step.done:
        seconds = max((at - step.progress_at).total_seconds(), 1e-3)
        newest = (done - step.done) / seconds
        rate = newest if rate is None else SMOOTHING * newest + (1 - SMOOTHING) * rate
    elif step.unit != event["unit"] or step.done is None or done < step.done:
        rate = None  # another phase of the step: its units are not comparable
    elif step.total == event["total"]:
        at = step.progress_at or at  # nothing moved: the rate is measured from the last move
    values = {
        "done": done,
        "total": event["total"],
        "unit": event["unit"],
        "note": event.get("note") or None,
        "rate": rate,
        "progress_at": at,
    }
    session.execute(update(Step).where(Step.id == step.id).values(**values).execution_options(synchronize_session=False))


def _points(session: Session, step_id: str, attempt: int, name: str, points: dict[float, float | None]) -> None:
    old = or_(Metric.x.in_(points), and_(Metric.attempt < attempt, Metric.x >= min(points)))
    session.execute(delete(Metric).where(Metric.step_id == step_id, Metric.name == name, old).execution_options(synchronize_session=False))
    rows = [{"step_id": step_id, "name": name, "x": x, "value": value, "attempt": attempt} for x, value in points.items()]
    session.execute(insert(Metric), rows)


def metrics(session: Session, job_id: str, names: Collection[str] | None = None, max_points: int = 500) -> list[Series]:
    """The curves of a job's steps, each thinned to about `max_points` points that keep every bucket's least and greatest value."""
    query = (
        select(JobStep.name, Metric.name, Metric.x, Metric.value)
        .join(Metric, Metric.step_id == JobStep.step_id)
        .where(JobStep.job_id == job_id)
        .order_by(JobStep.position, Metric.name, Metric.x)
    )
    if names is not None:
        query = query.where(Metric.name.in_(names))
    curves: dict[tuple[str, str], list[tuple[float, float | None]]] = {}
    for step, name, x, value in session.execute(query):
        curves.setdefault((step, name), []).append((x, value))
    return [Series(step=step, name=name, points=thin(points, max_points)) for (step, name), points in curves.items()]


def thin(points: list[tuple[float, float | None]], most: int) -> list[tuple[float, float | None]]:
    """At most `most` (at least 4) of the points, in order: first, last, and the least and greatest value of each equal bucket between."""
    most = max(most, 4)
    if len(points) <= most:
        return points
    inner, buckets = points[1:-1], (most - 2) // 2
    kept = [points[0]]
    for b in range(buckets):
        bucket = inner[b * len(inner) // buckets : (b + 1) * len(inner) // buckets]
        known = [(value, i) for i, (_, value) in enumerate(bucket) if value is not None]
        chosen = {min(known)[1], max(known)[1]} if known else {0}
        kept += [bucket[i] for i in sorted(chosen)]
    return [*kept, points[-1]]
