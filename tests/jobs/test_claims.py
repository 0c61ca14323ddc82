"""One winner, one writer: claims, leases, the fence, retries."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from jobs import claims, views
from jobs.cancel import cancel
from jobs.claims import Claim, claim, fail, heartbeat, load, reap, release, stands, succeed
from jobs.errors import LeaseLost
from jobs.models import Artifact, Event, Metric, Step
from jobs.records import record
from tests.jobs.harness import World, at_once, plan

CLAIMER = """
import sys
from jobs.claims import claim
from jobs.database import connect, sessions, transact
from jobs.settings import Settings
make = sessions(connect(Settings(home=sys.argv[1], database_url=sys.argv[2])))
sys.stdin.readline()
got = [step for step in sys.argv[4:] if transact(make, lambda s: claim(s, step, sys.argv[3]))]
print(*got)
"""


def test_of_many_claimers_one_wins(world: World) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    step_id = world.step(job_id, "a").id
    got = at_once([lambda n=n: world.database.write(lambda s: claim(s, step_id, f"w{n}")) for n in range(8)])
    (winner,) = [one for one in got if one is not None]
    step = world.step(job_id, "a")
    assert (winner.attempt, step.attempt, step.state) == (1, 1, "running")
    assert (step.lease_until, step.worker is None) == (winner.lease_until, False)


def test_processes_share_the_steps_without_overlap(world: World) -> None:
    names = [f"s{n}" for n in range(12)]
    job_id = world.submit(plan(*names, "distill<" + ",".join(names)))
    steps = [world.step(job_id, name).id for name in names]
    settings = world.database.settings
    command = [sys.executable, "-c", CLAIMER, str(settings.home), settings.database_url]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    claimers = [subprocess.Popen([*command, f"w{n}", *(steps if n else steps[::-1])], **pipes) for n in range(2)]
    got = [claimer.communicate("go\n", timeout=60)[0].split() for claimer in claimers]
    assert sorted(got[0] + got[1]) == sorted(steps)


def test_a_claim_of_what_is_not_ready_gives_nothing(world: World) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    blocked = world.step(job_id, "distill").id
    assert world.database.write(lambda s: claim(s, blocked, "w")) is None
    assert world.database.write(lambda s: claim(s, "step_nothing", "w")) is None
    world.run(job_id, "a")
    done = world.step(job_id, "a").id
    assert world.database.write(lambda s: claim(s, done, "w")) is None


def test_the_runner_gets_params_and_the_files_of_its_inputs_in_order(world: World) -> None:
    made = plan("a", "b")
    made.add("distill", "distill", {"lr": 0.1}, {"experts": ["b", "a"], "dataset": ["a"]})
    job_id = world.submit(made)
    world.run(job_id, "a", "b")
    held = world.claim(job_id, "distill")
    work = world.database.read(lambda s: load(s, held.step_id, held.attempt))
    assert (work.kind, work.params, work.attempt) == ("distill", {"lr": 0.1}, 1)
    files = {name: world.file(f"made by {world.step(job_id, name).id}").sha256 for name in ("a", "b")}
    assert {role: [[file.sha256 for file in one] for one in steps] for role, steps in work.inputs.items()} == {
        "experts": [[files["b"]], [files["a"]]],
        "dataset": [[files["a"]]],
    }
    with pytest.raises(LeaseLost):
        world.database.read(lambda s: load(s, held.step_id, held.attempt + 1))


def test_a_heartbeat_renews_the_lease(world: World) -> None:
    job_id = world.submit(plan("distill"))
    held = world.claim(job_id, "distill")
    world.pass_time(held.step_id, 89)
    assert world.database.write(lambda s: heartbeat(s, held.step_id, held.attempt, lease_seconds=50)) == "ok"
    lease = world.step(job_id, "distill").lease_until
    assert lease is not None
    assert 35 < (lease - held.lease_until).total_seconds() + 90 < 60
    assert world.database.write(reap) == 0
    assert world.database.write(lambda s: heartbeat(s, held.step_id, held.attempt + 1)) == "lost"


def test_a_zombie_writes_nothing(world: World) -> None:
    job_id = world.submit(plan("distill"))
    zombie = world.claim(job_id, "distill", "frozen")
    world.database.write(lambda s: record(s, zombie.step_id, zombie.attempt, [{"type": "metric", "name": "loss", "x": 0, "value": 1.0}]))
    world.pass_time(zombie.step_id, 91)
    assert world.database.write(reap) == 1
    heir = world.claim(job_id, "distill", "heir")
    assert heir.attempt == zombie.attempt + 1

    file = world.file("half-done")
    said = [
        {"type": "progress", "done": 9, "total": 10, "unit": "steps", "note": ""},
        {"type": "metric", "name": "loss", "x": 5, "value": 2.0},
        {"type": "note", "text": "from the grave"},
    ]
    attempts = [
        lambda s: succeed(s, zombie.step_id, zombie.attempt, [file], {}),
        lambda s: fail(s, zombie.step_id, zombie.attempt, "internal", "x"),
        lambda s: release(s, zombie.step_id, zombie.attempt),
        lambda s: record(s, zombie.step_id, zombie.attempt, said),
    ]
    before = _everything(world)
    for attempt in attempts:
        with pytest.raises(LeaseLost):
            world.database.write(attempt)
    assert world.database.write(lambda s: heartbeat(s, zombie.step_id, zombie.attempt)) == "lost"
    assert _everything(world) == before

    world.finish(heir)
    assert world.job(job_id).state == "succeeded"
    with pytest.raises(LeaseLost):
        world.database.write(lambda s: succeed(s, zombie.step_id, zombie.attempt, [file], {}))
    assert len(world.database.read(lambda s: list(s.scalars(select(Artifact.id))))) == 1


def _everything(world: World) -> list[Any]:
    tables = (Step, Artifact, Metric, Event)
    return [world.database.read(lambda s, t=table: [tuple(row) for row in s.execute(select(t.__table__))]) for table in tables]


def test_succeeding_twice_is_succeeding_once(world: World) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    held = world.claim(job_id, "a")
    world.finish(held)
    before = _everything(world)
    world.finish(held)
    assert _everything(world) == before


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_lease_that_is_just_being_renewed_is_not_taken_back(world: World) -> None:
    job_id = world.submit(plan("distill"))
    held = world.claim(job_id, "distill")
    world.pass_time(held.step_id, 91)
    with world.database.sessions.begin() as session, ThreadPoolExecutor(1) as pool:
        assert heartbeat(session, held.step_id, held.attempt) == "ok"
        reaping = pool.submit(world.database.write, reap)
        try:
            assert reaping.result(5) == 0
        finally:
            session.commit()
    assert world.step(job_id, "distill").state == "running"


def test_lost_workers_cost_an_attempt_only_when_they_are_many_and_the_last_fails_the_job(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "SPARED", 2)
    job_id = world.submit(plan("a", "distill<a"), max_attempts=2)
    for failures in (0, 0, 1):
        held = world.claim(job_id, "a", "w1")
        world.pass_time(held.step_id, 91)
        assert world.database.write(reap) == 1
        step = world.step(job_id, "a")
        assert (step.state, step.failures, step.worker, step.lease_until) == ("ready", failures, None, None)
        assert world.doorbells() == [step.id]
        assert world.job(job_id).state == "running"
    held = world.claim(job_id, "a", "w2")
    world.pass_time(held.step_id, 91)
    assert world.database.write(reap) == 1
    job = world.job(job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.code == "worker_lost"
    assert "step a: worker w2" in job.error.detail
    assert "attempt 2 of 2, and 2 that did not count" in job.error.detail
    assert job.error.hint
    assert world.database.write(reap) == 0


def test_retryable_failures_are_counted_and_others_are_final(world: World) -> None:
    job_id = world.submit(plan("a", "b<a", "distill<b"))
    for failures in (1, 2):
        held = world.claim(job_id, "a")
        world.database.write(lambda s, h=held: fail(s, h.step_id, h.attempt, "internal", "no\x00 disk", retryable=True))
        assert (world.step(job_id, "a").state, world.step(job_id, "a").failures) == ("ready", failures)
    world.run(job_id, "a")
    held = world.claim(job_id, "b")
    world.database.write(lambda s: fail(s, held.step_id, held.attempt, "bad_dataset", "broken", retryable=False))
    assert (world.step(job_id, "b").state, world.job(job_id).state) == ("failed", "failed")
    told = [event.type for event in world.database.read(lambda s: views.events(s, views.job(s, job_id))) if event.step == "a"]
    assert told == [*["step_started", "step_retried", "step_released"] * 2, "step_started", "step_succeeded"]


def test_failures_of_machines_are_spared_together_whatever_they_are(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "SPARED", 2)
    job_id = world.submit(plan("distill"), max_attempts=1)
    full: dict[str, Any] = {"retryable": True, "machine": True}
    held = world.claim(job_id, "distill")
    world.database.write(lambda s: fail(s, held.step_id, held.attempt, "internal", "no room", **full))
    lost = world.claim(job_id, "distill")
    world.pass_time(lost.step_id, 91)
    assert world.database.write(reap) == 1
    assert (world.step(job_id, "distill").state, world.step(job_id, "distill").failures) == ("ready", 0)
    last = world.claim(job_id, "distill")
    world.database.write(lambda s: fail(s, last.step_id, last.attempt, "internal", "no room", **full))
    assert (world.step(job_id, "distill").state, world.step(job_id, "distill").failures) == ("failed", 1)


def test_a_claim_stands_while_nobody_has_touched_it(world: World) -> None:
    job_id = world.submit(plan("distill"))
    held = world.claim(job_id, "distill")
    assert world.database.read(lambda s: stands(s, held))
    world.database.write(lambda s: release(s, held.step_id, held.attempt))
    assert not world.database.read(lambda s: stands(s, held))
    again = world.claim(job_id, "distill")
    assert [world.database.read(lambda s, c=c: stands(s, c)) for c in (held, again)] == [False, True]
    world.database.write(lambda s: heartbeat(s, again.step_id, again.attempt, lease_seconds=50))
    assert not world.database.read(lambda s: stands(s, again)), "somebody runs it"


def test_whether_a_claim_stands_is_known_when_its_commit_is_over(world: World) -> None:
    job_id = world.submit(plan("distill"))
    step_id = world.step(job_id, "distill").id
    with ThreadPoolExecutor(1) as pool:
        with world.database.sessions.begin() as session:
            held = claim(session, step_id, "w")
            assert held is not None
            answer = pool.submit(world.database.write, lambda s: stands(s, held))
            with pytest.raises(TimeoutError):  # the server is still committing, though whoever claimed has lost sight of it
                answer.result(0.3)
        assert answer.result(20)


def test_handing_back_costs_nothing(world: World) -> None:
    job_id = world.submit(plan("distill"), max_attempts=1)
    for attempt in range(1, 5):
        held = world.claim(job_id, "distill")
        assert held.attempt == attempt
        world.database.write(lambda s, h=held: release(s, h.step_id, h.attempt))
        assert world.step(job_id, "distill").failures == 0
        assert world.doorbells() == [held.step_id]
    assert world.finish_job(job_id).state == "succeeded"


def test_a_lost_worker_of_a_cancelled_job_ends_it(world: World) -> None:
    job_id = world.submit(plan("distill"))
    held = world.claim(job_id, "distill")
    world.database.write(lambda s: cancel(s, job_id))
    world.pass_time(held.step_id, 91)
    world.database.write(reap)
    assert (world.job(job_id).state, world.step(job_id, "distill").state) == ("cancelled", "cancelled")


def test_heartbeats_and_records_do_not_wait_for_changes_of_the_graph(world: World) -> None:
    """On PostgreSQL a long submit must not cost a running step its lease. (SQLite has one writer.)"""
    if world.database.engine.dialect.name == "sqlite":
        return
    job_id = world.submit(plan("distill"))
    held: Claim = world.claim(job_id, "distill")
    progress = {"type": "progress", "done": 1, "total": 2, "unit": "steps", "note": ""}
    with world.database.sessions.begin() as session:
        world_lock = time.monotonic()
        reap(session)  # holds the graph lock until the block ends
        assert world.database.write(lambda s: heartbeat(s, held.step_id, held.attempt)) == "ok"
        world.database.write(lambda s: record(s, held.step_id, held.attempt, [progress]))
        assert time.monotonic() - world_lock < 10


def test_a_success_shows_no_failure_of_earlier_attempts_and_all_of_its_progress(world: World) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    step_id = world.step(job_id, "a").id
    for attempt in (1, 2):
        world.database.write(lambda s: claim(s, step_id, "w"))
        world.database.write(
            lambda s, attempt=attempt: record(
                s, step_id, attempt, [{"type": "progress", "done": 0, "total": 7, "unit": "images", "note": ""}]
            )
        )
        if attempt == 1:
            world.database.write(lambda s: fail(s, step_id, 1, "internal", "the disk is full", "free some", retryable=True))
            assert world.step(job_id, "a").error_detail == "the disk is full"
    world.database.write(lambda s: succeed(s, step_id, 2, [], {}))
    step = world.step(job_id, "a")
    assert (step.state, step.done, step.total) == ("succeeded", 7, 7)
    assert (step.error_code, step.error_detail, step.error_hint) == (None, None, None)
