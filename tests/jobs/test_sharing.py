"""Steps are named by their keys: done ones are reused, running ones shared, and nobody stops what another job needs."""

from functools import partial

import pytest
from sqlalchemy import func, select

from jobs import views
from jobs.cancel import cancel
from jobs.claims import claim, fail, heartbeat, release
from jobs.errors import NotFound, WrongState
from jobs.models import LIVE_STEP, Job, JobStep, Step, StepInput
from tests.jobs.harness import World, at_once, plan

FAN = ("data", "e0<data", "e1<data", "distill<e0,e1")


def test_steps_become_ready_as_their_inputs_finish_and_the_job_ends_with_the_last(world: World) -> None:
    job_id = world.submit(plan(*FAN))
    assert world.states(job_id) == {"data": "ready", "e0": "blocked", "e1": "blocked", "distill": "blocked"}
    assert world.job(job_id).state == "queued"
    held = world.claim(job_id, "data")
    assert world.job(job_id).state == "running"
    world.finish(held)
    assert world.states(job_id) == {"data": "succeeded", "e0": "ready", "e1": "ready", "distill": "blocked"}
    assert world.doorbells() == [world.step(job_id, "e0").id, world.step(job_id, "e1").id]
    world.run(job_id, "e0")
    assert world.states(job_id)["distill"] == "blocked", "one input is still missing"
    world.run(job_id, "e1")
    world.finish(world.claim(job_id, "distill"), learned_lr=0.5, target_dim=7)
    job = world.job(job_id)
    assert (job.state, job.phase, job.progress.done, job.progress.total) == ("succeeded", "done", 4, 4)
    assert job.results["synthetic_set"].startswith("syn_")
    assert job.results["summaries"]["distill"] == {"learned_lr": 0.5, "target_dim": 7}
    assert job.created_at < job.started_at < job.finished_at
    assert world.doorbells() == []


def test_the_last_two_inputs_finishing_at_once_start_what_follows_once(world: World) -> None:
    job_id = world.submit(plan(*FAN))
    world.run(job_id, "data")
    held = [world.claim(job_id, "e0"), world.claim(job_id, "e1")]
    at_once([lambda h=h: world.finish(h, ok=True) for h in held])
    assert world.states(job_id)["distill"] == "ready"
    assert world.doorbells() == [world.step(job_id, "distill").id]


def test_the_last_two_steps_finishing_at_once_end_the_job(world: World) -> None:
    job_id = world.submit(plan("distill", "b"))
    held = [world.claim(job_id, "distill"), world.claim(job_id, "b")]
    at_once([lambda h=h: world.finish(h) for h in held])
    assert world.job(job_id).state == "succeeded"


def test_what_is_done_is_cached_what_runs_is_shared_the_rest_is_new(world: World) -> None:
    first = world.submit(plan("a", "b<a", "distill<b"))
    world.run(first, "a")
    world.claim(first, "b")
    second = world.submit(plan("a", "b<a", "c<b", "distill<b"))
    steps = {step.name: step for step in world.job(second).steps}
    assert [name for name, step in steps.items() if step.cached] == ["a"]
    assert [steps[name].id == world.step(first, name).id for name in ("a", "b", "distill")] == [True] * 3
    assert steps["c"].state == "blocked"
    assert world.job(second).state == "running", "one of its steps runs already"


def test_a_job_of_done_steps_alone_succeeds_at_once_with_a_result_of_its_own(world: World) -> None:
    first = world.submit(plan("a", "distill<a"))
    made = world.finish_job(first).results["synthetic_set"]
    second = world.submit(plan("a", "distill<a"))
    job = world.job(second)
    assert job.state == "succeeded"
    assert all(step.cached for step in job.steps)
    assert (job.progress.done, job.progress.total) == (2, 2)
    assert job.results["synthetic_set"] not in (made, None)
    told = world.database.read(lambda s: views.events(s, views.job(s, second)))
    assert [event.type for event in told] == ["job_queued", "job_succeeded"], "what happened before is not its history"
    assert told[0].data == {"steps": 2, "cached": 2, "shared": 0, "request_id": None}
    assert world.doorbells() == []


def test_failed_and_cancelled_steps_are_made_anew(world: World) -> None:
    first = world.submit(plan("a", "distill<a"))
    held = world.claim(first, "a")
    world.database.write(lambda s: fail(s, held.step_id, held.attempt, "diverged", "NaN"))
    second = world.submit(plan("a", "distill<a"))
    assert world.step(second, "a").id != world.step(first, "a").id
    assert world.step(second, "distill").id != world.step(first, "distill").id
    assert world.finish_job(second).state == "succeeded"
    assert world.states(first) == {"a": "failed", "distill": "cancelled"}


def test_concurrent_submits_of_one_plan_make_each_step_once(world: World) -> None:
    jobs = at_once([lambda: world.submit(plan(*FAN))] * 6)
    assert len(set(jobs)) == 6
    counts = world.database.read(
        lambda s: (s.scalar(select(func.count()).select_from(Step)), s.scalar(select(func.count()).select_from(JobStep)))
    )
    assert counts == (4, 24)
    assert world.database.read(lambda s: s.scalar(select(func.count()).select_from(StepInput))) == 4
    world.finish_job(jobs[0])
    assert {world.job(job).state for job in jobs} == {"succeeded"}


def test_submits_racing_with_the_end_of_a_shared_step_never_wait_for_it_forever(world: World) -> None:
    for seed in range(4):
        first = world.submit(plan("a", "distill<a", seed=seed))
        held = world.claim(first, "a")
        outcome = at_once([lambda h=held: world.finish(h), lambda n=seed: world.submit(plan("a", "b<a", "distill<a", seed=n))])
        assert world.finish_job(outcome[1]).state == "succeeded"
        assert world.job(first).state == "succeeded"


def test_done_steps_whose_files_are_gone_are_done_again_if_something_needs_them(world: World) -> None:
    first = world.submit(plan("a", "b<a", "distill<b"))
    world.finish_job(first)
    world.lose_files(first, "b")
    again = world.submit(plan("a", "b<a", "distill<b"))
    assert world.job(again).state == "succeeded", "nothing that must be there needs the lost file"
    other = world.submit(plan("a", "b<a", "distill<b", "c<b"))
    assert {step.name: step.cached for step in world.job(other).steps} == {"a": True, "b": False, "distill": True, "c": False}
    assert world.step(other, "b").id != world.step(first, "b").id
    assert world.finish_job(other).state == "succeeded"
    world.lose_files(first, "distill")
    last = world.submit(plan("a", "b<a", "distill<b"))
    assert world.states(last) == {"a": "succeeded", "b": "succeeded", "distill": "ready"}, "its own result must be there"


def test_a_failed_step_fails_every_job_that_needs_it_and_no_other(world: World) -> None:
    first = world.submit(plan("a", "bad<a", "x<a", "distill<bad,x"))
    second = world.submit(plan("a", "bad<a", "distill<bad", seed=0))
    bystander = world.submit(plan("a", "distill<a"))
    world.run(first, "a")
    held, kept = world.claim(first, "bad"), world.claim(first, "x")
    world.database.write(lambda s: fail(s, held.step_id, held.attempt, "diverged", "loss is NaN after 3 steps", "lower lr_images"))
    for job_id in (first, second):
        job = world.job(job_id)
        assert job.state == "failed"
        assert job.error is not None
        assert job.error.model_dump() == {"code": "diverged", "detail": "step bad: loss is NaN after 3 steps", "hint": "lower lr_images"}
    assert world.states(first) == {"a": "succeeded", "bad": "failed", "x": "running", "distill": "cancelled"}
    assert world.database.write(lambda s: heartbeat(s, kept.step_id, kept.attempt)) == "cancel"
    world.database.write(lambda s: release(s, kept.step_id, kept.attempt))
    assert world.states(first)["x"] == "cancelled"
    assert world.finish_job(bystander).state == "succeeded"


def test_cancelling_before_anything_runs_ends_the_job_at_once(world: World) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    assert world.database.write(lambda s: cancel(s, job_id).state) == "cancelled"
    assert world.states(job_id) == {"a": "cancelled", "distill": "cancelled"}
    assert world.doorbells() == []
    step_id = world.step(job_id, "a").id
    assert world.database.write(lambda s: claim(s, step_id, "late")) is None
    with pytest.raises(WrongState, match="cancelled"):
        world.database.write(lambda s: cancel(s, job_id))
    with pytest.raises(NotFound):
        world.database.write(lambda s: cancel(s, "job_nothing"))


def test_a_step_that_runs_for_the_cancelled_job_alone_is_told_to_stop(world: World) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    held = world.claim(job_id, "a")
    assert world.database.write(lambda s: heartbeat(s, held.step_id, held.attempt)) == "ok"
    assert world.database.write(lambda s: cancel(s, job_id).state) == "cancelling"
    assert world.database.write(lambda s: cancel(s, job_id).state) == "cancelling", "asking twice changes nothing"
    assert world.states(job_id) == {"a": "running", "distill": "cancelled"}
    assert world.database.write(lambda s: heartbeat(s, held.step_id, held.attempt)) == "cancel"
    world.database.write(lambda s: release(s, held.step_id, held.attempt))
    assert world.job(job_id).state == "cancelled"
    assert world.step(job_id, "a").state == "cancelled"


@pytest.mark.parametrize("end", ["succeed", "fail"])
def test_a_cancelling_job_is_cancelled_however_its_last_step_ends(world: World, end: str) -> None:
    job_id = world.submit(plan("distill"))
    held = world.claim(job_id, "distill")
    world.database.write(lambda s: cancel(s, job_id))
    if end == "succeed":
        world.finish(held)
    else:
        world.database.write(lambda s: fail(s, held.step_id, held.attempt, "diverged", "NaN"))
    job = world.job(job_id)
    assert (job.state, job.error) == ("cancelled", None)
    assert job.steps[0].state == {"succeed": "succeeded", "fail": "failed"}[end]


def test_cancelling_one_of_two_jobs_leaves_the_other_whole(world: World) -> None:
    mine = world.submit(plan("a", "b<a", "only<a", "distill<b,only"))
    other = world.submit(plan("a", "b<a", "distill<b"))
    held = world.claim(mine, "a")
    assert world.database.write(lambda s: cancel(s, mine).state) == "cancelled", "what runs, runs for the other"
    assert world.states(mine) == {"a": "running", "b": "blocked", "only": "cancelled", "distill": "cancelled"}
    assert world.database.write(lambda s: heartbeat(s, held.step_id, held.attempt)) == "ok"
    world.finish(held)
    assert world.finish_job(other).state == "succeeded"
    assert world.job(mine).state == "cancelled"


def test_a_job_posted_while_a_step_is_stopping_gets_it_back(world: World) -> None:
    first = world.submit(plan("a", "distill<a"))
    held = world.claim(first, "a")
    world.database.write(lambda s: cancel(s, first))
    assert world.job(first).state == "cancelling"
    second = world.submit(plan("a", "distill<a"))
    assert world.job(first).state == "cancelled", "nothing runs for it alone any more"
    assert world.database.write(lambda s: heartbeat(s, held.step_id, held.attempt)) == "ok"
    world.database.write(lambda s: release(s, held.step_id, held.attempt))
    assert world.step(second, "a").state == "ready"
    assert world.finish_job(second).state == "succeeded"


def test_cancels_and_submits_at_once_leave_no_job_without_its_steps(world: World) -> None:
    for seed in range(3):
        first = world.submit(plan(*FAN, seed=seed))
        stop = partial(world.database.write, partial(cancel, job_id=first))
        outcome = at_once([stop, partial(world.submit, plan(*FAN, seed=seed))])
        assert world.finish_job(outcome[1]).state == "succeeded"
    stuck = select(Step.id).where(Step.state.in_(LIVE_STEP))
    assert world.database.read(lambda s: list(s.scalars(stuck))) == []
    assert set(world.database.read(lambda s: list(s.scalars(select(Job.state))))) == {"succeeded", "cancelled"}


def test_two_names_of_one_key_are_one_step(world: World) -> None:
    made = plan("a")
    for name in ("first", "second"):
        made.add(name, "experts", {"same": True}, {"input": ["a"]})
    made.add("distill", "distill", {}, {"one": ["first"], "two": ["second"]})
    job_id = world.submit(made)
    steps = {step.name: step.id for step in world.job(job_id).steps}
    assert steps["first"] == steps["second"]
    assert world.finish_job(job_id).progress.total == 3


def test_a_higher_priority_is_passed_on_to_shared_steps(world: World) -> None:
    first = world.submit(plan("a", "distill<a"))
    world.submit(plan("a", "distill<a"), priority=5)
    world.submit(plan("a", "distill<a"), priority=3)
    assert world.step(first, "a").priority == 5
