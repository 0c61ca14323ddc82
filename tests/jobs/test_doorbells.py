"""Doorbells are written with the state they announce, sent outside transactions, and repeated when they were lost."""

from typing import Any

import pytest
from sqlalchemy import Result, event, select, update
from sqlalchemy.orm import ORMExecuteState, Session

from jobs.models import Step
from jobs.outbox import relay, ring_again
from tests.jobs.harness import World, plan


def test_doorbells_are_sent_once_most_urgent_first_outside_any_transaction(world: World) -> None:
    low = world.submit(plan("a", "b", "distill<a,b"))
    high = world.submit(plan("c", "distill<c", seed=1), priority=9)
    heard: list[tuple[str, str]] = []

    def send(step_id: str, queue: str) -> None:
        world.database.write(lambda s: s.execute(select(Step).with_for_update()).all())  # would wait for a lock that relay held
        heard.append((step_id, queue))

    assert relay(world.database.sessions, send) == 3
    assert heard == [(world.step(job, name).id, "gpu") for job, name in ((high, "c"), (low, "a"), (low, "b"))]
    assert relay(world.database.sessions, send) == 0
    assert world.step(low, "a").rings == 1


def test_what_could_not_be_sent_stays(world: World) -> None:
    world.submit(plan("a", "b", "c", "distill<a,b,c"))
    first, *others = world.doorbells()

    def send(step_id: str, queue: str) -> None:
        if step_id != first:
            raise ConnectionError("no broker")

    with pytest.raises(ConnectionError):
        relay(world.database.sessions, send)
    assert world.doorbells() == others


def test_a_limit_is_kept(world: World) -> None:
    world.submit(plan("a", "b", "c", "distill<a,b,c"))
    assert relay(world.database.sessions, lambda step, queue: None, limit=2) == 2
    assert len(world.doorbells()) == 1


def test_a_lost_doorbell_is_rung_again_ever_more_rarely(world: World) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    step_id = world.step(job_id, "a").id

    def ring(**options: object) -> int:
        return world.database.write(lambda s: ring_again(s, **options))  # type: ignore[arg-type]

    world.pass_time(step_id, 31)
    assert ring() == 0, "its first doorbell still waits to be sent"
    relay(world.database.sessions, lambda step, queue: None)
    assert ring() == 0, "it was rung just now"
    world.pass_time(step_id, 31)
    assert ring() == 1
    assert world.doorbells() == [step_id]
    relay(world.database.sessions, lambda step, queue: None)
    world.pass_time(step_id, 31)
    assert ring() == 0, "the second repeat waits twice as long"
    assert ring(empty=["cpu"]) == 0
    assert ring(empty=["gpu"]) == 1, "nothing is waiting at the broker: it was lost"
    relay(world.database.sessions, lambda step, queue: None)
    world.claim(job_id, "a")
    world.pass_time(step_id, 100_000)
    assert ring(empty=["gpu"]) == 0, "it is being run"


def test_only_what_is_to_be_rung_is_read(world: World) -> None:
    world.submit(plan("a", "b", "c", "distill<a,b,c"))
    relay(world.database.sessions, lambda step, queue: None)
    for step_id in (first := world.database.read(lambda s: list(s.scalars(select(Step.id).where(Step.state == "ready"))))):
        world.pass_time(step_id, 31)
    world.database.write(lambda s: s.execute(update(Step).where(Step.id == first[0]).values(rings=2)))
    read: list[str] = []

    def count(orm: ORMExecuteState) -> Result[Any] | None:
        if orm.is_select and "outbox" in str(orm.statement):
            kept = orm.invoke_statement().freeze()
            read.extend(row[0] for row in kept().all())
            return kept()
        return None

    with Session(world.database.engine) as session, session.begin():
        event.listen(session, "do_orm_execute", count)
        assert ring_again(session, limit=1) == 1
    assert len(read) == 1
    assert set(read) < set(first[1:])
