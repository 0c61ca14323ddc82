"""Who is there, what waits for whom, and that no worker is given what it would compute differently."""

from dataclasses import replace
from datetime import timedelta

from sqlalchemy import delete, update

from ddcore.plan import engine_digest
from jobs.claims import take
from jobs.models import Doorbell, Step, Worker
from jobs.workers import FORGET_SECONDS, Presence, forget, leave, queues, report, set_device, workers
from tests.jobs.harness import World, plan

ONE = Presence("one/7", "host", 7, ("gpu", "cpu"), engine_digest(), "1.0")


def come(world: World, worker: Presence) -> None:
    world.database.write(lambda s: report(s, worker, alive_seconds=60))


def silent(world: World, name: str, seconds: float) -> None:
    """As if the worker had last reported so much earlier."""
    with world.database.sessions.begin() as session:
        row = session.get_one(Worker, name)
        row.last_seen, row.alive_until = (moment - timedelta(seconds=seconds) for moment in (row.last_seen, row.alive_until))


def test_a_worker_comes_works_and_goes(world: World) -> None:
    assert world.database.write(lambda s: set_device(s, ONE.name, "H200", 5)) is False
    come(world, ONE)
    assert world.database.write(lambda s: set_device(s, ONE.name, "NVIDIA H200", 150_000_000_000)) is True
    (first,) = world.database.read(workers)
    assert (first.name, first.state, first.host, first.pid, first.queues, first.step) == ("one/7", "idle", "host", 7, ["gpu", "cpu"], None)
    assert (first.device, first.memory, first.engine, first.version) == ("NVIDIA H200", 150_000_000_000, engine_digest(), "1.0")
    job_id = world.submit(plan("distill"))
    held = world.database.write(lambda s: take(s, "gpu", ONE.name, ONE.engine))
    assert held is not None
    come(world, ONE)
    (second,) = world.database.read(workers)
    assert (second.state, second.step) == ("busy", world.step(job_id, "distill").id)
    assert (second.started_at, second.device) == (first.started_at, first.device)
    assert second.last_seen > first.last_seen
    world.finish(held)
    world.database.write(lambda s: leave(s, ONE.name))
    assert world.database.read(workers) == []


def test_a_new_process_under_an_old_name_is_listed_as_it_is(world: World) -> None:
    come(world, replace(ONE, engine="older", version="0.9", queues=("cpu",)))
    job_id = world.submit(plan("distill"))
    world.pass_time(world.step(job_id, "distill").id, 10)
    with world.database.sessions.begin() as session:
        session.execute(delete(Doorbell))
    (old,) = world.database.read(workers)
    world.database.write(lambda s: report(s, ONE, alive_seconds=60, first=True))
    (new,) = world.database.read(workers)
    assert (new.engine, new.version, new.queues) == (ONE.engine, "1.0", ["gpu", "cpu"])
    assert new.started_at > old.started_at
    assert world.doorbells() == [world.step(job_id, "distill").id], "it is the first of its engine there"


def test_a_silent_worker_is_lost_and_after_a_day_forgotten(world: World) -> None:
    come(world, ONE)
    come(world, replace(ONE, name="two/8"))
    silent(world, ONE.name, 61)
    assert [(one.name, one.state) for one in world.database.read(workers)] == [("one/7", "lost"), ("two/8", "idle")]
    assert {queue.name: queue.workers for queue in world.database.read(queues)} == {"gpu": ["two/8"], "cpu": ["two/8"], "io": []}
    assert world.database.write(forget) == 0
    silent(world, ONE.name, FORGET_SECONDS)
    assert world.database.write(forget) == 1
    assert [one.name for one in world.database.read(workers)] == ["two/8"]


def test_queues_tell_what_waits_and_who_listens(world: World) -> None:
    empty = world.database.read(queues)
    assert [(one.name, one.ready, one.running, one.oldest_seconds, one.workers) for one in empty] == [
        (name, 0, 0, None, []) for name in ("gpu", "cpu", "io")
    ]
    come(world, ONE)
    come(world, replace(ONE, name="two/8", queues=("cpu",)))
    job_id = world.submit(plan("a", "b", "c", "distill<a,b,c"))
    world.claim(job_id, "a")
    world.pass_time(world.step(job_id, "b").id, 100)
    gpu, cpu, io = world.database.read(queues)
    assert (gpu.ready, gpu.running, gpu.workers, gpu.other_engines) == (2, 1, ["one/7"], [])
    assert gpu.oldest_seconds is not None
    assert 100 <= gpu.oldest_seconds < 130
    assert (cpu.ready, cpu.running, cpu.oldest_seconds, cpu.workers) == (0, 0, None, ["one/7", "two/8"])
    assert io.workers == []


def test_a_step_of_another_engine_is_left_alone_and_its_job_says_so(world: World) -> None:
    job_id = world.submit(plan("distill"))
    world.database.write(lambda s: s.execute(update(Step).values(engine="older")))
    usual = "waiting for a worker, before choosing images"
    assert world.job(job_id).phase == usual, "nobody is there at all"
    come(world, replace(ONE, name="cpu/1", queues=("cpu",), engine="older"))
    assert world.job(job_id).phase == usual
    come(world, ONE)
    assert world.job(job_id).phase == "waiting for a worker of another version (engine older), before choosing images"
    assert world.database.read(queues)[0].other_engines == ["older"]
    assert world.database.write(lambda s: take(s, "gpu", ONE.name, ONE.engine)) is None
    come(world, replace(ONE, name="old/2", engine="older"))
    assert world.job(job_id).phase == usual
    assert world.database.read(queues)[0].other_engines == []
    assert world.database.write(lambda s: take(s, "gpu", "old/2", "older")) is not None
