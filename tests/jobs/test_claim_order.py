"""Which step a worker gets: the most urgent, then in turns between jobs, then the oldest; found by an index, however many wait."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, text, update

from ddcore.plan import engine_digest
from jobs.cancel import cancel
from jobs.claims import Claim, release, succeed, take
from jobs.models import Step
from jobs.order import line_up
from jobs.outbox import relay
from jobs.place import steps_ahead
from jobs.recent import Recent
from tests.jobs.harness import World, at_once, plan

AT = "'2026-01-01 00:00:00.000000'"


def next_claim(world: World, queue: str = "gpu", engine: str | None = None) -> Claim | None:
    return world.database.write(lambda s: take(s, queue, "w", engine or engine_digest()))


def claimed(world: World, count: int) -> list[str | None]:
    """The ids of the steps that so many doorbells lead to."""
    return [held.step_id if (held := next_claim(world)) else None for _ in range(count)]


def steps(world: World, job_id: str, *names: str) -> list[str]:
    return [world.step(job_id, name).id for name in names]


def test_the_most_urgent_then_in_turns_then_the_oldest(world: World) -> None:
    wide = world.submit(plan("a", "b", "c", "distill<a,b,c"))
    small = world.submit(plan("d", "distill<d", seed=1))
    late = world.submit(plan("e", "f", "distill<e,f", seed=2))
    urgent = world.submit(plan("g", "h", "distill<g,h", seed=3), priority=1)
    expected = [
        *steps(world, urgent, "g", "h"),
        *(world.step(job, name).id for job, name in ((wide, "a"), (small, "d"), (late, "e"), (wide, "b"), (late, "f"), (wide, "c"))),
        None,
    ]
    assert claimed(world, 9) == expected


def test_a_job_with_much_running_waits_for_one_with_little(world: World) -> None:
    first = world.submit(plan("a", "b", "c", "d", "e", "distill<a,b,c,d,e"))
    held = [next_claim(world) for _ in range(3)]
    second = world.submit(plan("f", "g", "distill<f,g", seed=1))
    assert held[0] is not None
    world.finish(held[0])  # two of the first job's run on: its next turn is the third
    assert claimed(world, 4) == [*steps(world, second, "f", "g"), *steps(world, first, "d", "e")]


def test_a_step_that_was_handed_back_waits_behind_the_others_of_its_job(world: World) -> None:
    first = world.submit(plan("a", "b", "distill<a,b"))
    second = world.submit(plan("c", "distill<c", seed=1))
    held = next_claim(world)
    assert held is not None
    world.database.write(lambda s: release(s, held.step_id, held.attempt))
    assert claimed(world, 3) == [*steps(world, first, "b"), *steps(world, second, "c"), held.step_id]


def test_places_are_the_order_of_claims(world: World) -> None:
    jobs = [
        world.submit(plan(*names, f"distill<{','.join(names)}", seed=seed), priority=priority)
        for seed, (names, priority) in enumerate(((("a", "b", "c"), 0), (("d",), 0), (("e", "f"), 2), (("g", "h", "i"), 0)))
    ]
    told = {job: place.position for job in jobs if (place := world.job(job).queue)}
    assert len(told) == 4
    order = claimed(world, 9)
    owners = [next(job for job in jobs if step_id in {step.id for step in world.job(job).steps}) for step_id in order]
    assert told == {job: owners.index(job) + 1 for job in jobs}


def test_a_far_place_counts_turns_and_not_all_that_wait(world: World) -> None:
    names = [f"s{n}" for n in range(20)]
    world.submit(plan(*names, "distill<" + ",".join(names)))
    small = world.submit(plan("distill", seed=1))
    place = world.job(small).queue
    assert place is not None
    assert (place.position, place.ahead) == (2, 1)
    assert claimed(world, 2)[1] == world.step(small, "distill").id


def test_queues_and_engines_are_apart(world: World) -> None:
    job_id = world.submit(plan("distill"))
    assert next_claim(world, "cpu") is None
    assert next_claim(world, engine="of tomorrow") is None
    assert next_claim(world) is not None
    assert world.step(job_id, "distill").engine == engine_digest()


def test_a_job_that_shares_a_waiting_step_brings_it_to_its_own_engine(world: World) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    world.database.write(lambda s: s.execute(update(Step).values(engine="of yesterday")))
    assert next_claim(world) is None
    world.submit(plan("a", "distill<a"))
    assert claimed(world, 1) == steps(world, job_id, "a")


def test_what_is_shared_is_as_urgent_as_those_who_still_want_it(world: World) -> None:
    job_id = world.submit(plan("a", "b<a", "distill<b"))
    urgent = world.submit(plan("a", "b<a", "distill<b"), priority=5)
    world.database.write(lambda s: cancel(s, urgent))
    assert [world.step(job_id, name).priority for name in ("a", "b", "distill")] == [0, 0, 0]


def test_of_many_workers_each_gets_another_step(world: World) -> None:
    names = [f"s{n}" for n in range(8)]
    job_id = world.submit(plan(*names, "distill<" + ",".join(names)))
    got = at_once([lambda: next_claim(world)] * 10)
    assert sorted(one.step_id for one in got if one) == sorted(steps(world, job_id, *names))
    assert next_claim(world) is None, "a doorbell too many"


def test_a_claim_leaves_as_many_doorbells_as_steps_that_wait(world: World) -> None:
    first = world.submit(plan("distill"))
    assert relay(world.database.sessions, lambda step, queue: None) == 1
    world.submit(plan("distill", seed=1), priority=5)
    assert claimed(world, 1) != steps(world, first, "distill")  # by the first job's doorbell, while the second's was not sent yet
    assert world.doorbells() == steps(world, first, "distill")


@pytest.mark.parametrize(("spread", "owners"), [(1, 1), (50, 1), (1, 100), (5, 20)])
def test_a_claim_and_a_place_among_a_hundred_thousand_read_little(world: World, spread: int, owners: int) -> None:
    """spread: how many priorities there are; owners: of each of them."""
    add_many(world, 100_000, spread, owners)
    last = world.database.read(
        lambda s: s.scalar(select(Step).where(Step.priority == spread - 1, Step.owner == f"o{owners - 1:03d}", Step.turn == 3))
    )
    with counting_reads(world.database.engine) as read:
        held = next_claim(world)
    assert held is not None
    assert held.step_id == f"step_{spread - 1:06d}"
    assert read() < 20 * owners + 100
    assert last is not None
    recent = Recent(600.0)
    with counting_reads(world.database.engine) as read:
        ahead = world.database.read(lambda s: steps_ahead(s, last, recent))
    assert ahead == 4 * owners - 2  # four turns of each, less its own last and the one that was claimed
    assert read() < 5 * 100_000, "it counts what waits, by an index"
    with counting_reads(world.database.engine) as read:
        assert world.database.read(lambda s: steps_ahead(s, last, recent)) == ahead
    assert read() == 0, "once for all who ask in a moment"


@contextmanager
def counting_reads(engine: Engine) -> Iterator[Callable[[], float]]:
    """How many rows of tables and indexes the SELECTs of the block read, roughly: PostgreSQL tells it, SQLite tells its instructions."""
    with asked(engine) as said:
        yield lambda: sum(reads(engine, *one) for one in said[:] if one[0].startswith(("SELECT", "WITH")))


def reads(engine: Engine, statement: str, parameters: Any) -> float:
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            (plans,) = connection.exec_driver_sql("EXPLAIN (ANALYZE, FORMAT JSON) " + statement, parameters).one()
            return sum(rows(plan["Plan"]) for plan in plans)
        counted: list[int] = []
        raw: Any = connection.connection.dbapi_connection
        raw.set_progress_handler(lambda: counted.append(1) or 0, 10)
        connection.exec_driver_sql(statement, parameters).all()
        raw.set_progress_handler(None, 0)
        return len(counted) / 2  # about twenty instructions to a row


def rows(plan: dict[str, Any]) -> float:
    own = sum(plan.get(name, 0) for name in ("Actual Rows", "Rows Removed by Filter")) * plan["Actual Loops"]
    return (own if "Relation Name" in plan else 0) + sum(rows(one) for one in plan.get("Plans", []))


def add_many(world: World, count: int, spread: int, owners: int) -> None:
    """So many ready steps of one queue, of so many priorities and owners of each."""
    numbers = f"WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count - 1})"
    columns = {
        "id": "'step_' || substr(CAST(1000000 + n AS TEXT), 2)",
        "key": "'key_' || n",
        "priority": f"n % {spread}",
        "owner": f"'o' || substr(CAST(1000 + n / {spread} % {owners} AS TEXT), 2)",
        "turn": f"n / {spread * owners}",
        "kind": "'experts'",
        "queue": "'gpu'",
        "params": "'{}'",
        "state": "'ready'",
        "engine": f"'{engine_digest()}'",
        **dict.fromkeys(("waiting", "attempt", "failures", "rings"), "0"),
        "max_attempts": "3",
        "created_at": AT,
        "ready_at": AT,
    }
    insert = f"INSERT INTO steps ({', '.join(columns)}) {numbers} SELECT {', '.join(columns.values())} FROM numbers"
    with world.database.engine.begin() as connection:
        connection.execute(text(insert))
        connection.execute(text("ANALYZE steps"))


def test_turns_are_counted_from_what_waits_or_runs_alone(world: World) -> None:
    names = [f"s{n}" for n in range(8)]
    job_id = world.submit(plan(*names, f"distill<{','.join(names)}"))
    world.run(job_id, *names[:6])
    add_many(world, 20_000, 1, 1)
    with world.database.engine.begin() as connection:  # as a planner saw it that looked when nothing waited
        connection.execute(text("UPDATE steps SET state = 'succeeded'"))
        connection.execute(text("ANALYZE"))
        connection.execute(text("UPDATE steps SET state = 'ready' WHERE finished_at IS NULL AND waiting = 0"))
    with asked(world.database.engine) as said:
        world.database.write(lambda s: line_up(s, [job_id], []))
    statement, parameters = next(one for one in said if one[0].startswith("SELECT") and "job_steps" in one[0])
    with world.database.engine.connect() as connection:
        assert len(connection.exec_driver_sql(statement, parameters).all()) == 2
        explain = "EXPLAIN " if world.database.engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
        how = str(connection.exec_driver_sql(explain + statement, parameters).all())
    assert "ix_steps_" not in how, "it would read what waits for all jobs"


@contextmanager
def asked(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """The statements of the block, with their parameters."""
    said: list[tuple[str, Any]] = []

    def listen(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        said.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", listen)
    try:
        yield said
    finally:
        event.remove(engine, "before_cursor_execute", listen)


def test_few_statements_keep_others_waiting_at_a_claim_and_at_a_success(world: World) -> None:
    job_id = world.submit(plan("a", "b", "distill<a,b"))
    relay(world.database.sessions, lambda step, queue: None)
    for most_to_claim, most_to_succeed in ((8, 10), (7, 11), (7, 12)):  # the first starts the job, the last ends it
        with asked(world.database.engine) as said:
            held = next_claim(world)
        assert len(said) <= most_to_claim, said
        assert held is not None
        made = [world.file(f"{held.step_id} {n}", f"{n}.bin") for n in range(3)]
        with asked(world.database.engine) as said:
            world.database.write(lambda s, held=held, made=made: succeed(s, held.step_id, held.attempt, made, {}))  # type: ignore[misc]
        assert len(said) <= most_to_succeed, said
        relay(world.database.sessions, lambda step, queue: None)
    assert world.job(job_id).state == "succeeded"
