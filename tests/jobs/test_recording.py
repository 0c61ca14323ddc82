"""What a running step says: progress with a rate, curves that go on across attempts, notes."""

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import views
from jobs.claims import Claim, release
from jobs.models import Step
from jobs.records import metrics, record, thin
from tests.jobs.harness import World, plan


def progress(done: int, total: int = 100, unit: str = "iterations", note: str = "") -> dict[str, Any]:
    return {"type": "progress", "done": done, "total": total, "unit": unit, "note": note}


def loss(x: float, value: float) -> dict[str, Any]:
    return {"type": "metric", "name": "loss", "x": x, "value": value}


def say(world: World, held: Claim, *events: dict[str, Any]) -> None:
    world.database.write(lambda s: record(s, held.step_id, held.attempt, events))


def test_progress_gives_a_rate_and_the_time_left(world: World) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    world.run(job_id, "a")
    held = world.claim(job_id, "distill")
    say(world, held, progress(0))
    _earlier(world, held, 10)
    say(world, held, progress(10), progress(20, note="fine"))
    step = world.step(job_id, "distill")
    assert step.rate == pytest.approx(2.0, rel=0.2), "20 units in ten seconds"
    job = world.job(job_id)
    assert job.progress.done == pytest.approx(1.2)
    assert (job.progress.total, job.progress.unit) == (2, "steps")
    assert job.progress.eta_seconds == pytest.approx(40, rel=0.25)
    assert job.phase == "choosing images: 20 of 100 iterations"
    (shown,) = [one for one in job.steps if one.name == "distill"]
    assert shown.progress is not None
    assert (shown.progress.done, shown.progress.total, shown.progress.unit, shown.note) == (20, 100, "iterations", "fine")
    _earlier(world, held, 10)
    assert world.job(job_id).progress.eta_seconds == pytest.approx(30, abs=10), "it falls between two reports"
    say(world, held, progress(3, 7, "images"))
    assert world.step(job_id, "distill").rate is None, "another unit has another rate"


def _earlier(world: World, held: Claim, seconds: float) -> None:
    with world.database.sessions.begin() as session:
        step = session.get_one(Step, held.step_id)
        assert step.progress_at is not None
        step.progress_at -= timedelta(seconds=seconds)


def test_a_new_attempt_starts_its_progress_anew(world: World) -> None:
    job_id = world.submit(plan("distill"))
    held = world.claim(job_id, "distill")
    say(world, held, progress(50))
    world.database.write(lambda s: release(s, held.step_id, held.attempt))
    world.claim(job_id, "distill")
    assert (world.step(job_id, "distill").done, world.job(job_id).steps[0].progress) == (None, None)


def test_one_curve_across_attempts(world: World) -> None:
    job_id = world.submit(plan("distill"))
    held = world.claim(job_id, "distill")
    say(world, held, *(loss(x, 1.0) for x in range(10)), {"type": "metric", "name": "lr", "x": 0, "value": 0.5})
    world.database.write(lambda s: release(s, held.step_id, held.attempt))
    heir = world.claim(job_id, "distill")
    say(world, heir, loss(4, 2.0), loss(6, 2.0))
    say(world, heir, loss(8, 2.0), loss(6, 3.0), loss(9, math.nan))
    say(world, heir, loss(5, 4.0))
    (lr, curve) = sorted(world.database.read(lambda s: metrics(s, job_id)), key=lambda one: one.name, reverse=True)
    assert curve.points == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 4), (6, 3), (8, 2), (9, None)]
    assert (curve.step, curve.name, lr.points) == ("distill", "loss", [(0, 0.5)])
    assert [one.name for one in world.database.read(lambda s: metrics(s, job_id, names=["lr"]))] == ["lr"]
    assert len(world.database.read(lambda s: metrics(s, job_id, max_points=4))[0].points) == 4


def test_notes_are_events_of_every_job_that_shares_the_step(world: World) -> None:
    first, second = world.submit(plan("distill")), world.submit(plan("distill"))
    held = world.claim(first, "distill")
    say(world, held, {"type": "note", "text": "went back to the last good checkpoint\x00"})
    for job_id in (first, second):
        told = world.database.read(lambda s, j=job_id: views.events(s, views.job(s, j)))
        assert [event.type for event in told] == ["job_queued", "step_started", "job_running", "note"]
        assert (told[-1].step, told[-1].data) == ("distill", {"text": "went back to the last good checkpoint"})
        assert [event.id for event in told] == sorted(event.id for event in told)
        after = world.database.read(lambda s, j=job_id, seen=told[1].id: views.events(s, views.job(s, j), after=seen, limit=1))
        assert [event.type for event in after] == ["job_running"]


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=300), st.integers(1, 60))
def test_thinning_keeps_ends_and_extremes(values: list[float | None], most: int) -> None:
    points = [(float(x), value) for x, value in enumerate(values)]
    kept = thin(points, most)
    assert len(kept) <= max(most, 4)
    assert kept == sorted(set(kept), key=lambda one: one[0])
    assert set(kept) <= set(points)
    if points:
        assert (kept[0], kept[-1]) == (points[0], points[-1])
    known = [value for value in values if value is not None]
    if known:
        shown = [value for _, value in kept if value is not None]
        assert (min(shown), max(shown)) == (min(known), max(known))
