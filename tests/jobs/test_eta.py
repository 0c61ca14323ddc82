"""How long a job will still take is told from past runs like it, as a range; and where there are none, nothing is told."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, update

from ddcore.data.builtins import facts
from ddcore.plan import engine_digest, plan_distill
from ddcore.specs import DistillSpec
from jobs import views
from jobs.bodies import Eta
from jobs.claims import Claim
from jobs.database import now
from jobs.durations import RUNS, low_and_high, shapes
from jobs.models import Step
from jobs.records import record
from jobs.workers import Presence, leave, report
from tests.jobs.harness import World, plan

CHAIN = ("a", "b<a", "distill<b")
FAN = ("a", "e0<a", "e1<a", "e2<a", "e3<a", "distill<e0,e1,e2,e3")


def hire(world: World, count: int = 1, queues: Sequence[str] = ("gpu",)) -> None:
    for n in range(count):
        there = Presence(f"w{n}", "host", n, tuple(queues), engine_digest(), "1")
        world.database.write(lambda s, there=there: report(s, there, alive_seconds=60))


def begin(world: World, job_id: str, name: str, ago: float = 0.0, worker: str = "w0") -> Claim:
    """Claim a step as if so many seconds ago."""
    held = world.claim(job_id, name, worker)
    world.database.write(
        lambda s: s.execute(update(Step).where(Step.id == held.step_id).values(started_at=now(s) - timedelta(seconds=ago)))
    )
    return held


def run(world: World, edges: Sequence[str], seed: int, **seconds: float) -> None:
    """A job that is done, whose steps took so long: ten seconds each, but for those that are named."""
    job_id = world.submit(plan(*edges, seed=seed))
    for step in world.job(job_id).steps:
        world.finish(begin(world, job_id, step.name, seconds.get(step.name, 10.0)))


def near(told: Eta | None, low: float, high: float, runs: int) -> bool:
    """Within what the test itself takes."""
    assert told is not None
    return told.runs == runs and told.low_seconds == pytest.approx(low, abs=2.5) and told.high_seconds == pytest.approx(high, abs=2.5)


def test_nothing_is_told_without_past_runs_without_workers_or_of_what_has_ended(world: World) -> None:
    hire(world)
    job_id = world.submit(plan(*CHAIN))
    assert world.job(job_id).eta is None
    world.finish_job(job_id)
    assert world.job(job_id).eta is None
    other = world.submit(plan("a", "c<a", "distill<c", seed=1))
    assert world.job(other).eta is None, "c was never run"
    third = world.submit(plan(*CHAIN, seed=2))
    assert world.job(third).queue == views.Queue(position=2, ahead=1)
    assert world.job(third).eta is not None
    assert world.database.read(lambda s: views.jobs(s)).data[0].eta is None, "lists do not tell it"
    world.database.write(lambda s: leave(s, "w0"))
    assert world.job(third).eta is None


def test_a_chain_takes_the_sum_of_what_such_steps_took(world: World) -> None:
    hire(world, 5)
    for seed, seconds in enumerate((100, 200, 300)):
        run(world, CHAIN, seed, b=seconds)
    job_id = world.submit(plan(*CHAIN, seed=9))
    assert near(world.job(job_id).eta, 120 + 20, 280 + 20, 3)
    world.finish(begin(world, job_id, "a"))
    held = begin(world, job_id, "b", ago=150)
    assert near(world.job(job_id).eta, 60 + 10, 140 + 10, 3), "those that took longer than this one by now: 50 and 150 to go"
    world.database.write(lambda s: s.execute(update(Step).where(Step.id == held.step_id).values(started_at=now(s) - timedelta(hours=1))))
    assert world.job(job_id).eta is None, "no run took as long"
    point = {"type": "progress", "done": 0, "total": 100, "unit": "steps", "note": ""}
    world.database.write(lambda s: record(s, held.step_id, held.attempt, [point]))
    world.database.write(lambda s: s.execute(update(Step).where(Step.id == held.step_id).values(done=40, rate=2.0)))
    assert near(world.job(job_id).eta, 60 / 2 + 10, 60 / 2 + 10, 3), "by its own rate"


@pytest.mark.parametrize(("workers", "expected"), [(1, 400), (2, 200), (4, 100), (9, 100)])
def test_what_fans_out_is_divided_among_the_workers_that_are_there(world: World, workers: int, expected: float) -> None:
    hire(world, workers)
    run(world, FAN, 0, a=0, e0=100, e1=100, e2=100, e3=100, distill=0)
    assert near(world.job(world.submit(plan(*FAN, seed=1))).eta, expected, expected, 1)


def test_the_high_guess_has_no_more_workers_than_the_job_has_now(world: World) -> None:
    hire(world, 4)
    run(world, FAN, 0, a=0, e0=100, e1=100, e2=100, e3=100, distill=0)
    job_id = world.submit(plan(*FAN, seed=1))
    world.finish(begin(world, job_id, "a"))
    for n in range(3):
        begin(world, world.submit(plan("distill", seed=50 + n)), "distill", worker=f"w{n}")
    begin(world, job_id, "e0", worker="w3")
    assert near(world.job(job_id).eta, 100, 400, 1)


def test_what_is_ahead_is_counted_at_the_pace_of_the_queue(world: World) -> None:
    hire(world, 2)
    for seed in range(3):
        run(world, ("distill",), seed, distill=60)
    for seed in range(10, 16):  # two run, four wait
        job_id = world.submit(plan("distill", seed=seed))
        if seed < 12:
            begin(world, job_id, "distill", worker=f"w{seed - 10}")
    mine = world.job(world.submit(plan("distill", seed=20)))
    assert mine.queue == views.Queue(position=5, ahead=4)
    assert near(mine.eta, 4 * 60 / 2 + 60, 5 * 60 / 2 + 60, 3), "five ends, of which the first is under way"


def test_only_the_latest_runs_count_and_only_those_that_went_through(world: World) -> None:
    hire(world)
    for seed in range(3):
        run(world, ("distill",), seed, distill=1000)
    for seed in range(10, 10 + RUNS):
        run(world, ("distill",), seed, distill=50)
    mine = world.submit(plan("distill", seed=99))
    assert near(world.job(mine).eta, 50, 50, RUNS)
    world.database.write(lambda s: s.execute(update(Step).where(Step.state == "succeeded").values(attempt=2)))
    assert world.job(mine).eta is None


def test_telling_it_takes_few_statements(world: World) -> None:
    hire(world)
    run(world, FAN, 0)
    job_id = world.submit(plan(*FAN, seed=1))
    said: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement != "BEGIN" and "clock" not in statement:
            said.append(statement)

    event.listen(world.database.engine, "before_cursor_execute", listen)
    try:
        assert world.job(job_id).eta is not None
        waiting, said[:] = len(said), []
        world.finish(begin(world, job_id, "a"))
        begin(world, job_id, "e0")
        said.clear()
        assert world.job(job_id).eta is not None
    finally:
        event.remove(world.database.engine, "before_cursor_execute", listen)
    # the job and all that is its own; two for the place; workers, past runs, edges
    assert (waiting, len(said)) == (6, 4)


def test_shapes_leave_out_seeds_and_shards_and_nothing_else() -> None:
    def shaped(**fields: Any) -> dict[str, str]:
        spec = DistillSpec.model_validate({"preset": "smoke", "experts": {"num": 4, "per_shard": 2}} | fields)
        planned = plan_distill(spec, facts(spec.dataset))
        by_key = shapes(planned)
        return {step.name: by_key[step.key] for step in planned}

    first, other = shaped(), shaped(seed=7)
    assert first == other
    assert first["experts-0"] == first["experts-1"]
    assert len({*first.values()}) == len(first) - 1
    fewer = shaped(num_images=10)
    assert {name for name in first if fewer[name] == first[name]} == {*first} - {"distill", "init-high_loss", "export", "figures"}
    assert {name for name, shape in shaped(dataset="digits-test").items() if shape in first.values()} == set()


def test_percentiles_fall_between_neighbours() -> None:
    assert low_and_high([5.0]) == (5.0, 5.0)
    assert low_and_high([30.0, 10.0, 20.0]) == pytest.approx((12.0, 28.0))
