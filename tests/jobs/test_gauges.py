"""What there is and what has happened, on both databases."""

import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import event, select

from jobs import claims, gauges, outbox
from jobs.database import connect, readers
from jobs.gauges import Happening
from jobs.models import QUEUES, Doorbell, Event
from jobs.news import newest
from jobs.settings import Settings
from jobs.workers import Presence, report
from tests.jobs.harness import World, plan

ONE = Presence("one/1", "host", 1, ("gpu",), "engine", "1.0")


def last(world: World) -> int:
    return world.database.read(newest)


def happened(world: World, after: int) -> list[Happening]:
    return world.database.read(lambda s: gauges.since(s, after)).happened


def test_unfinished_work_is_counted_with_its_age(world: World) -> None:
    empty = world.database.read(gauges.look)
    assert (empty.jobs, empty.steps, empty.workers, empty.unsent, empty.overdue) == ({}, {}, {}, 0, 0)
    first, second = world.submit(plan("a", "distill<a")), world.submit(plan("b", "distill<b", seed=1))
    world.database.write(lambda s: report(s, ONE, alive_seconds=60))
    held = world.claim(first, "a", "one/1")
    with world.database.sessions.begin() as session:
        bell = session.scalars(select(Doorbell)).one()
        bell.created_at -= timedelta(seconds=100)
    seen = world.database.read(gauges.look)
    assert seen.jobs == {("distill", "running"): 1, ("distill", "queued"): 1}
    assert seen.steps == {("gpu", "experts", "running"): 1, ("gpu", "experts", "ready"): 1, ("gpu", "distill", "blocked"): 2}
    assert seen.workers == {("busy", "unknown", "engine", "1.0"): 1}
    assert {queue.name: (queue.ready, queue.running, queue.workers) for queue in seen.queues}["gpu"] == (1, 1, ["one/1"])
    assert [queue.name for queue in seen.queues] == list(QUEUES)
    assert seen.unsent == 1
    assert 100 <= seen.unsent_age < 160
    outbox.relay(world.database.sessions, lambda *_: None)
    world.pass_time(held.step_id, 200)
    seen = world.database.read(gauges.look)
    assert (seen.unsent, seen.unsent_age, seen.overdue) == (0, 0.0, 1)
    assert 100 <= seen.overdue_age < 200
    world.finish(held)
    world.finish_job(first)
    world.finish_job(second)
    seen = world.database.read(gauges.look)
    assert (seen.jobs, seen.steps, seen.overdue) == ({}, {}, 0), "what has ended costs nothing to count"


def test_what_happens_is_told_once_with_how_long_it_took(world: World) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    start = last(world)
    step_id = world.step(job_id, "a").id
    world.pass_time(step_id, 50)
    held = world.claim(job_id, "a")
    started, running = happened(world, start)
    assert (started.type, started.kind, started.queue, running.type, running.kind) == (
        "step_started",
        "experts",
        "gpu",
        "job_running",
        "distill",
    )
    assert started.seconds is not None
    assert 50 <= started.seconds < 100
    world.pass_time(step_id, 200)
    assert world.database.write(claims.reap) == 1
    held = world.claim(job_id, "a")
    again = happened(world, start)
    assert [(one.type, one.code, one.expired) for one in again if one.code] == [("step_retried", "worker_lost", True)]
    assert again[0].seconds is None, "nobody knows any more how long the first attempt had waited"
    middle = last(world)
    world.finish(held)
    distill = world.claim(job_id, "distill")
    world.database.write(lambda s: claims.fail(s, distill.step_id, distill.attempt, "diverged", "grew", "lower it"))
    told = [(one.type, one.kind, one.code, one.expired) for one in happened(world, middle) if one.type != "step_ready"]
    assert told == [
        ("step_succeeded", "experts", "", False),
        ("step_started", "distill", "", False),
        ("step_failed", "distill", "diverged", False),
        ("job_failed", "distill", "", False),
    ]
    assert happened(world, middle)[0].seconds is not None
    assert happened(world, last(world)) == []


def test_many_events_are_read_in_pieces(world: World) -> None:
    start = last(world)
    with world.database.sessions.begin() as session:
        at = session.scalars(select(Event.at)).first() or world.database.read(lambda s: gauges.now(s))
        session.add_all([Event(type="note", data={"text": "x"}, at=at) for _ in range(gauges.MOST + 5)])
    first = world.database.read(lambda s: gauges.since(s, start))
    assert (len(first.happened), first.more) == (gauges.MOST, True)
    second = world.database.read(lambda s: gauges.since(s, first.last))
    assert (len(second.happened), second.more, second.last) == (5, False, last(world))


def test_what_has_ended_is_not_read(tmp_path: Path, sqlite_file: Path) -> None:
    shutil.copy(sqlite_file, tmp_path / "potstill.db")
    engine = connect(Settings(home=tmp_path))
    asked: list[tuple[str, Any]] = []
    with readers(engine)() as session:
        event.listen(engine, "before_cursor_execute", lambda *args: asked.append((args[2], args[3])))
        gauges.look(session)
        gauges.since(session, 5)
        questions = [one for one in asked if one[0].startswith("SELECT")]
        assert len(questions) >= 5
        for statement, values in questions:
            rows = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
            assert not re.search(r"SCAN (jobs|steps|events)", str(rows)), f"reads a whole table: {statement}"
    engine.dispose()
