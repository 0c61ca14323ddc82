"""A job's priority and labels may change after it was posted, and the next claim obeys."""

import pytest

from ddcore.plan import engine_digest
from jobs import views
from jobs.cancel import cancel
from jobs.change import change
from jobs.claims import take
from jobs.errors import NotFound, WrongState
from tests.jobs.harness import World, plan


def next_claim(world: World) -> str | None:
    held = world.database.write(lambda s: take(s, "gpu", "w", engine_digest()))
    return held.step_id if held else None


def test_a_new_priority_counts_from_the_next_claim_on(world: World) -> None:
    first = world.submit(plan("a", "distill<a"))
    second = world.submit(plan("b", "c", "distill<b,c", seed=1))
    assert world.job(second).phase.endswith("1 step ahead")
    world.database.write(lambda s: change(s, second, priority=1))
    place = world.job(second).queue
    assert place is not None
    assert (place.position, world.job(second).priority) == (1, 1)
    assert next_claim(world) == world.step(second, "b").id
    world.database.write(lambda s: change(s, second, priority=-1))
    assert [next_claim(world), next_claim(world)] == [world.step(first, "a").id, world.step(second, "c").id]
    assert world.step(second, "distill").priority == -1, "what is blocked follows"
    told = world.database.read(lambda s: views.events(s, views.job(s, second)))
    assert [one.data for one in told if one.type == "job_priority"] == [{"before": 0, "after": 1}, {"before": 1, "after": -1}]


def test_a_shared_step_follows_the_most_urgent_of_its_jobs(world: World) -> None:
    jobs = [world.submit(plan("a", "distill<a"), priority=priority) for priority in (0, 3)]
    for priorities, expected in (((0, -5), 0), ((9, -5), 9), ((-9, -5), -5)):
        for job, priority in zip(jobs, priorities, strict=True):
            world.database.write(lambda s, job=job, priority=priority: change(s, job, priority=priority))
        assert world.step(jobs[0], "a").priority == expected


def test_labels_are_replaced(world: World) -> None:
    job_id = world.submit(plan("distill"), labels=["a", "b"])
    world.database.write(lambda s: change(s, job_id, labels=["c", "b", "c"]))
    assert (world.job(job_id).labels, world.job(job_id).priority) == (["b", "c"], 0)
    world.database.write(lambda s: change(s, job_id, labels=[]))
    assert world.job(job_id).labels == []


def test_what_has_ended_keeps_its_priority_but_may_be_filed_anew(world: World) -> None:
    job_id = world.submit(plan("distill"), priority=2)
    world.database.write(lambda s: cancel(s, job_id))
    with pytest.raises(WrongState, match="cancelled"):
        world.database.write(lambda s: change(s, job_id, priority=3, labels=["x"]))
    assert world.job(job_id).labels == []
    world.database.write(lambda s: change(s, job_id, priority=2, labels=["x"]))
    assert world.job(job_id).labels == ["x"]
    with pytest.raises(NotFound):
        world.database.write(lambda s: change(s, "job_x", priority=1))
