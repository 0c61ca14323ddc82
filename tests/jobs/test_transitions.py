"""Every move from every state, by the table and by the database."""

import itertools
from datetime import UTC, datetime

import pytest
from sqlalchemy import delete, select, update

from jobs.graph import JOB_ENDS, JOB_MOVES, STEP_ENDS, STEP_MOVES, move_jobs, move_steps
from jobs.models import JOB_STATES, STEP_STATES, Doorbell, Event, Job, Step
from tests.jobs.harness import World, plan

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def test_the_tables_know_every_state_and_nothing_follows_an_end() -> None:
    assert tuple(JOB_MOVES) == JOB_STATES
    assert tuple(STEP_MOVES) == STEP_STATES
    assert JOB_ENDS == STEP_ENDS == ("succeeded", "failed", "cancelled")
    assert set(JOB_MOVES["cancelling"]) == {"cancelled"}, "a job that is being cancelled does not succeed or fail any more"
    assert set(STEP_MOVES["running"]) == {"ready", "succeeded", "failed", "cancelled"}


def test_jobs_move_only_where_the_table_allows(world: World) -> None:
    job_id = world.submit(plan("distill"))
    for before, after in itertools.product(JOB_STATES, JOB_STATES):
        world.database.write(lambda s, state=before: s.execute(update(Job).values(state=state, started_at=None, finished_at=None)))
        moved = world.database.write(lambda s, to=after: move_jobs(s, [job_id], to, NOW))
        job = world.database.read(lambda s: s.get_one(Job, job_id))
        allowed = after in JOB_MOVES[before]
        assert (moved == [job_id]) == allowed, (before, after)
        assert job.state == (after if allowed else before)
        assert (job.finished_at == NOW) == (allowed and after in JOB_ENDS)
        assert (job.started_at == NOW) == (allowed and after == "running")
    told = world.database.read(lambda s: list(s.scalars(select(Event.type).where(Event.job_id == job_id).order_by(Event.id))))
    assert told[1:] == [f"job_{after}" for before, after in itertools.product(JOB_STATES, JOB_STATES) if after in JOB_MOVES[before]]


def test_steps_move_only_where_the_table_allows_and_doorbells_follow(world: World) -> None:
    job_id = world.submit(plan("distill"))
    step_id = world.step(job_id, "distill").id
    for before, after in itertools.product(STEP_STATES, STEP_STATES):
        world.database.write(lambda s, state=before: s.execute(update(Step).values(state=state, finished_at=None, ready_at=None)))
        world.database.write(lambda s: s.execute(delete(Doorbell)))
        if before == "ready":
            world.database.write(lambda s: s.add(Doorbell(step_id=step_id, created_at=NOW)))
        moved = world.database.write(lambda s, to=after: move_steps(s, to, NOW, Step.id == step_id))
        step = world.step(job_id, "distill")
        allowed = after in STEP_MOVES[before]
        assert (moved == [step_id]) == allowed, (before, after)
        assert step.state == (after if allowed else before)
        assert (step.finished_at == NOW) == (allowed and after in STEP_ENDS)
        if allowed:
            claimed = (before, after) == ("ready", "running")  # who claims looks whether there is one to remove
            assert world.doorbells() == ([step_id] if after == "ready" or claimed else []), (before, after)


@pytest.mark.parametrize("state", JOB_ENDS)
def test_nothing_that_happens_to_its_steps_moves_a_job_that_has_ended(world: World, state: str) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    held = world.claim(job_id, "a")
    world.set_job(job_id, state)
    world.finish(held)
    world.run(job_id, "distill")
    assert world.job(job_id).state == state
