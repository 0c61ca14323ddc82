"""Workers are divided fairly between owners, however many jobs one of them posts; and places tell the order in which it comes."""

from random import Random

import pytest
from sqlalchemy import select

from ddcore.plan import engine_digest
from jobs import views
from jobs.cancel import cancel
from jobs.change import change
from jobs.claims import Claim, release, take
from jobs.models import Step
from jobs.place import steps_ahead
from tests.jobs.harness import World, plan


def next_claim(world: World) -> Claim:
    held = take_one(world)
    assert held is not None
    return held


def owner_of(world: World, held: Claim) -> str:
    return world.database.read(lambda s: s.get_one(Step, held.step_id).owner)


def served(world: World, count: int, workers: int = 1) -> str:
    """The owners of so many claims, by their first letters; of `workers` workers, the one that has run longest ends next."""
    under_way: list[Claim] = []
    told = ""
    for _ in range(count):
        if len(under_way) == workers:
            world.finish(under_way.pop(0))
        under_way.append(next_claim(world))
        told += owner_of(world, under_way[-1])[0]
    for held in under_way:
        world.finish(held)
    return told


def post(world: World, owner: str, count: int, first: int = 0, **options: object) -> list[str]:
    """Jobs of one step each."""
    return [world.submit(plan("distill", seed=first + n), owner=owner, **options) for n in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_who_comes_late_with_one_job_is_served_next(world: World, workers: int) -> None:
    post(world, "ada", 12)
    assert served(world, 5, workers) == "aaaaa"
    post(world, "bob", 1, first=100)
    assert served(world, 3, workers) == "baa"


def test_one_worker_alternates_and_two_take_one_each(world: World) -> None:
    post(world, "ada", 11)
    post(world, "bob", 10, first=100)
    post(world, "cy", 2, first=200)
    assert served(world, 9) == "abcabcaba"
    assert served(world, 8, workers=2) == "babababa"
    assert served(world, 4) == "baba"


def test_what_fans_out_spreads_over_all_workers_and_is_halved_when_another_comes(world: World) -> None:
    names = [f"cell{n}" for n in range(12)]
    wide = world.submit(plan("data", *(f"{name}<data" for name in names), "distill<" + ",".join(names)), owner="ada")
    world.run(wide, "data")
    held = [next_claim(world) for _ in range(4)]
    assert {step.name for step in world.job(wide).steps if step.state == "running"} == set(names[:4]), "all four workers at once"
    other = world.submit(plan(*names, "distill<" + ",".join(names), seed=1), owner="bob")
    shares = []
    for _ in range(8):
        world.finish(held.pop(0))
        held.append(next_claim(world))
        shares.append(sum(owner_of(world, one) == "bob" for one in held))
    assert shares == [1, 2, 2, 2, 2, 2, 2, 2]
    world.database.write(lambda s: cancel(s, wide))
    for one in held:
        world.finish(one) if owner_of(world, one) == "bob" else world.database.write(
            lambda s, one=one: release(s, one.step_id, one.attempt)
        )
    assert [owner_of(world, next_claim(world)) for _ in range(4)] == ["bob"] * 4
    assert {step.state for step in world.job(other).steps} == {"succeeded", "running", "ready", "blocked"}


def test_a_more_urgent_job_comes_first_whoever_had_more(world: World) -> None:
    post(world, "ada", 3)
    post(world, "bob", 3, first=100)
    post(world, "ada", 2, first=200, priority=1)
    assert served(world, 6) == "aababa"


def test_who_has_more_running_waits(world: World) -> None:
    post(world, "ada", 6)
    for _ in range(3):
        next_claim(world)
    post(world, "bob", 6, first=100)
    assert [owner_of(world, next_claim(world)) for _ in range(7)] == ["bob", "bob", "bob", "ada", "bob", "ada", "bob"]


def test_nobody_starves_while_another_posts_without_end(world: World) -> None:
    waiting = post(world, "zoe", 3)
    for n in range(12):
        post(world, "ada", 2, first=100 + 2 * n)
        served(world, 1)
        if all(world.job(job).state == "succeeded" for job in waiting):
            break
    assert n < 7


def test_a_shared_step_counts_for_the_most_urgent_of_its_jobs_then_for_the_first(world: World) -> None:
    first = world.submit(plan("a", "distill<a"), owner="ada")
    second = world.submit(plan("a", "distill<a"), owner="bob")

    def owners() -> set[str]:
        return {world.step(first, name).owner for name in ("a", "distill")}

    assert owners() == {"ada"}
    world.database.write(lambda s: change(s, second, priority=1))
    assert owners() == {"bob"}
    world.database.write(lambda s: change(s, first, priority=1))
    assert owners() == {"ada"}
    world.submit(plan("a", "distill<a"), owner="cy", priority=9)
    assert owners() == {"cy"}
    world.database.write(lambda s: change(s, second, priority=9))
    assert owners() == {"bob"}
    held = world.claim(first, "a")
    world.database.write(lambda s: cancel(s, second))
    assert (world.step(first, "a").owner, world.step(first, "a").priority) == ("cy", 9), "also of one that runs"
    world.finish(held)
    assert world.finish_job(first).state == "succeeded"


def test_cancelling_the_favoured_of_two_leaves_the_other_whole(world: World) -> None:
    slow = world.submit(plan("a", "b<a", "distill<b"), owner="ada", priority=-1)
    urgent = world.submit(plan("a", "b<a", "only<a", "distill<b,only"), owner="bob", priority=5)
    held = world.claim(slow, "a")
    world.database.write(lambda s: cancel(s, urgent))
    left = [world.step(slow, name) for name in ("a", "b", "distill")]
    assert [(step.state, step.owner, step.priority) for step in left] == [("running", "ada", -1), *[("blocked", "ada", -1)] * 2]
    world.finish(held)
    assert world.finish_job(slow).state == "succeeded"
    assert world.step(urgent, "only").state == "cancelled"


def test_owners_are_kept_told_and_found(world: World) -> None:
    mine = post(world, "ada", 3)
    post(world, "bob", 2, first=100)
    assert world.job(mine[0]).owner == "ada"
    found = world.database.read(lambda s: views.jobs(s, owner="ada", limit=2))
    assert [job.id for job in found.data] == [mine[2], mine[1]]
    rest = world.database.read(lambda s: views.jobs(s, owner="ada", cursor=found.next_cursor))
    assert [job.id for job in rest.data] == [mine[0]]
    assert world.job(world.submit(plan("distill", seed=999))).owner == ""


PLAYED = [("sqlite", seed) for seed in range(10)] + [("postgresql", seed) for seed in range(10, 14)]


@pytest.mark.parametrize(("database", "seed"), PLAYED, indirect=["database"])
def test_places_come_true(world: World, seed: int) -> None:
    """Whatever was posted, claimed and ended: the steps ahead of each that waits are those claimed before it, if only claims follow."""
    random = Random(seed)
    submit_some(world, random, 0)
    held = [take_one(world) for _ in range(random.randrange(7))]
    for one in random.sample(held, random.randrange(len(held) + 1)):
        if one is not None and random.random() < 0.5:
            world.finish(one)
        elif one is not None:
            world.database.write(lambda s, one=one: release(s, one.step_id, one.attempt))
    submit_some(world, random, 100)
    waiting = world.database.read(lambda s: list(s.scalars(select(Step).where(Step.state == "ready"))))
    told = {step.id: world.database.read(lambda s, step=step: steps_ahead(s, step)) for step in waiting}
    order = [one.step_id for _ in waiting if (one := take_one(world))]
    assert told == {step_id: n for n, step_id in enumerate(order)}


def submit_some(world: World, random: Random, first: int) -> None:
    for n in range(random.randint(1, 9)):
        names = [f"s{i}" for i in range(random.randint(1, 3))]
        made = plan(*names, "distill<" + ",".join(names), seed=first + n)
        world.submit(made, owner=random.choice("abcd"), priority=random.choice((0, 0, 0, 1, 2)))


def take_one(world: World) -> Claim | None:
    return world.database.write(lambda s: take(s, "gpu", "w", engine_digest()))
