"""What readers see: places in the queue, words, pages; and that lists and claims use their indexes."""

import re
from typing import Any

import pytest
from sqlalchemy import event, text

from jobs import views
from jobs.cancel import cancel
from jobs.claims import fail, heartbeat, load, reap, release
from jobs.errors import BadCursor, NotFound
from jobs.models import Job, Step
from jobs.outbox import relay, ring_again
from jobs.phases import doing, phase
from jobs.records import metrics, record
from tests.jobs.harness import World, plan


def test_the_place_in_the_queue_counts_what_comes_first(world: World) -> None:
    jobs = [world.submit(plan("distill", seed=seed), priority=priority) for seed, priority in enumerate((0, 0, 5))]
    places = [world.job(job_id).queue for job_id in jobs]
    assert [(place.position, place.ahead) for place in places if place] == [(2, 1), (3, 2), (1, 0)]
    assert world.job(jobs[1]).phase == "waiting for a worker, before choosing images: 2 steps ahead"
    world.claim(jobs[2], "distill")
    assert world.job(jobs[2]).queue is None
    assert world.job(jobs[0]).queue == views.Queue(position=1, ahead=0)


def test_phases_are_words() -> None:
    job = Job(state="running")
    shards = [Step(kind="experts", state=state, params={}) for state in ("succeeded", "running", "ready", "blocked")]
    mkdt = Step(kind="distill", state="running", params={"method": {"name": "mkdt"}}, done=1200, total=5000, unit="iterations")
    assert phase(job, shards) == "training experts: 1 of 4 parts done"
    assert phase(job, [*shards[:1], mkdt]) == "matching trajectories: 1,200 of 5,000 iterations"
    assert phase(job, [Step(kind="teacher", state="running", params={"teacher": {"ssl": "given"}})]) == "loading the teacher"
    assert (
        phase(job, [Step(kind="teacher", state="ready", params={})], 1) == "waiting for a worker, before training the teacher: 1 step ahead"
    )
    assert phase(Job(state="cancelling"), [mkdt]) == "cancelling: waiting for a running step to stop"
    assert doing(Step(kind="something new", params={})) == "something new"


def test_pages_are_stable_while_jobs_are_added(world: World) -> None:
    jobs = [world.submit(plan("distill", seed=seed), labels=["even"] if seed % 2 == 0 else []) for seed in range(5)]
    first = world.database.read(lambda s: views.jobs(s, limit=2))
    assert ([one.id for one in first.data], first.has_more) == ([jobs[4], jobs[3]], True)
    world.submit(plan("distill", seed=9))
    second = world.database.read(lambda s: views.jobs(s, limit=2, cursor=first.next_cursor))
    third = world.database.read(lambda s: views.jobs(s, limit=2, cursor=second.next_cursor))
    assert [one.id for one in (*second.data, *third.data)] == jobs[2::-1]
    assert (third.has_more, third.next_cursor) == (False, None)
    even = world.database.read(lambda s: views.jobs(s, label="even", kind="distill", state="queued"))
    assert [one.id for one in even.data] == jobs[4::-2]
    assert world.database.read(lambda s: views.jobs(s, state="failed").data) == []
    assert world.database.read(lambda s: views.jobs(s, kind="evaluate").data) == []


@pytest.mark.parametrize("cursor", ["", "x", "%%%", "bm90IG91cnM", "ÿ"])
def test_a_cursor_that_is_not_ours_is_refused(world: World, cursor: str) -> None:
    with pytest.raises(BadCursor, match="not a cursor"):
        world.database.read(lambda s: views.jobs(s, cursor=cursor))


def test_files_are_found_by_job_and_name(world: World) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    world.finish_job(job_id)
    files = world.database.read(lambda s: views.artifacts(s, job_id))
    assert [(one.step, one.name, one.kind) for one in files] == [("a", "out.bin", "trajectories"), ("distill", "out.bin", "trajectories")]
    found = world.database.read(lambda s: views.job_file(s, job_id, "out.bin"))
    assert found == files[1], "the later step's"
    assert world.database.read(lambda s: views.artifact(s, files[0].id)).sha256 == files[0].sha256
    for ask in (
        lambda s: views.job(s, "job_x"),
        lambda s: views.artifact(s, "art_x"),
        lambda s: views.job_file(s, job_id, "x"),
        lambda s: views.synthetic_set(s, "syn_x"),
        lambda s: views.report(s, "rep_x"),
    ):
        with pytest.raises(NotFound):
            world.database.read(ask)


def test_times_are_aware_and_in_utc(world: World) -> None:
    job = world.job(world.submit(plan("distill")))
    assert job.created_at.utcoffset() is not None
    assert job.model_dump(mode="json")["created_at"].endswith("Z")


def test_nothing_that_is_done_all_the_time_reads_a_whole_table(world: World) -> None:
    """Every statement of a job's life and of its readers is explained; only short tables may be read as a whole."""
    said: list[tuple[str, Any]] = []

    def listen(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if statement.startswith(("SELECT", "WITH", "UPDATE", "DELETE")) and not many:
            said.append((statement, parameters))

    event.listen(world.database.engine, "before_cursor_execute", listen)
    try:
        _live_a_life(world)
    finally:
        event.remove(world.database.engine, "before_cursor_execute", listen)
    assert len(said) > 50
    with world.database.engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET enable_seqscan = off"))  # small tables are read as a whole unless that is made to look dear
        for statement, parameters in {(statement, str(parameters)): (statement, parameters) for statement, parameters in said}.values():
            how = [str(row[-1]) for row in connection.exec_driver_sql(_EXPLAIN[connection.dialect.name] + statement, parameters)]
            assert not [line for line in how if _WHOLE.search(line)], (statement, how)


_SHORT = "outbox|datasets|workers"
_WHOLE = re.compile(rf"Seq Scan on (?!{_SHORT})|SCAN (?!{_SHORT}|owners|anon_)\w+$")  # owners, anon_1: results of parts of a statement
_EXPLAIN = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN "}


def _live_a_life(world: World) -> None:
    write, read, make = world.database.write, world.database.read, world.database.sessions
    job_id = world.submit(plan("a", "b<a", "distill<b"), labels=["x"])
    other = world.submit(plan("a", "b<a", "distill<b", "c"))
    relay(make, lambda step, queue: None)
    write(ring_again)
    held = world.claim(job_id, "a")
    write(lambda s: heartbeat(s, held.step_id, held.attempt))
    point = {"type": "metric", "name": "loss", "x": 0, "value": 1.0}
    write(lambda s: record(s, held.step_id, held.attempt, [point, {"type": "progress", "done": 1, "total": 2, "unit": "x", "note": ""}]))
    read(lambda s: load(s, held.step_id, held.attempt))
    world.finish(held)
    write(reap)
    held = world.claim(job_id, "b")
    write(lambda s: cancel(s, other))
    write(lambda s: release(s, held.step_id, held.attempt))
    held = world.claim(job_id, "b")
    for ask in (
        lambda s: views.job(s, job_id),
        lambda s: views.jobs(s, state="running"),
        lambda s: views.jobs(s, kind="distill"),
        lambda s: views.jobs(s, label="x"),
        lambda s: views.jobs(s),
        lambda s: views.events(s, views.job(s, job_id)),
        lambda s: views.artifacts(s, job_id),
        lambda s: metrics(s, job_id),
        lambda s: views.synthetic_sets(s),
    ):
        read(ask)
    write(lambda s: fail(s, held.step_id, held.attempt, "internal", "x"))
