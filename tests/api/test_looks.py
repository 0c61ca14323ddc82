"""Many who look at jobs at the same time are served together, each with what was true after he asked."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from anyio import CapacityLimiter
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from api.looks import MOST, Looks
from api.pace import Pace
from jobs import views
from jobs.bodies import JobView
from jobs.database import connect, lookers
from jobs.errors import NotFound
from jobs.models import Job
from jobs.recent import GRACE, Recent
from jobs.settings import Settings
from jobs.store import FolderStore
from tests.conftest import Database
from tests.jobs.harness import World, plan


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    return World(database, FolderStore(tmp_path / "blobs"), tmp_path)


@pytest.fixture
def looks(world: World) -> Looks:
    return Looks(lookers(world.database.engine), CapacityLimiter(1), Pace(), Recent(1.0))


def statements(world: World) -> list[str]:
    said: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    event.listen(world.database.engine, "before_cursor_execute", listen)
    return said


def test_a_crowd_asks_the_database_hardly_more_than_one(world: World, looks: Looks) -> None:
    ids = [world.submit(plan("a", "distill<a", seed=seed), labels=["x", "y"]) for seed in range(5)]
    alone = {job_id: world.job(job_id) for job_id in ids}

    async def crowd() -> list[Any]:
        await looks.job(ids[0])  # what is the same for all is known now
        said.clear()
        return await asyncio.gather(*(looks.job(job_id) for job_id in ids * 20))

    said = statements(world)
    seen = asyncio.run(crowd())
    assert [one.job for one in seen] == [alone[job_id] for job_id in ids * 20]
    assert len({one.again for one in seen}) == len(seen), "each is told a moment of his own"
    assert len([one for one in said if one.startswith("SELECT")]) <= 3, "jobs, edges; and a line once more, if it was asked for"


def test_who_asks_while_others_are_read_for_sees_what_happened_meanwhile(
    world: World, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, some = world.submit(plan("distill")), views.some
    began, go_on = threading.Event(), threading.Event()

    def slow(session: Session, job_ids: Sequence[str], recent: Recent | None) -> dict[str, JobView]:
        found = some(session, job_ids, recent)
        began.set()
        go_on.wait(10)
        return found

    monkeypatch.setattr("jobs.views.some", slow)

    async def two() -> tuple[str, str]:
        first = asyncio.create_task(looks.job(job_id))
        await asyncio.to_thread(began.wait, 10)
        await asyncio.to_thread(world.claim, job_id, "distill")
        second = asyncio.create_task(looks.job(job_id))
        await asyncio.sleep(0)
        go_on.set()
        return (await first).job.state, (await second).job.state

    assert asyncio.run(two()) == ("queued", "running")


def test_what_is_wrong_with_one_job_is_not_held_against_the_others(world: World, looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad, some = world.submit(plan("distill")), world.submit(plan("distill", seed=1)), views.some

    def broken(session: Session, job_ids: Sequence[str], recent: Recent | None) -> dict[str, JobView]:
        if bad in job_ids:
            raise ValueError("cannot be told")
        return some(session, job_ids, recent)

    monkeypatch.setattr("jobs.views.some", broken)

    async def ask() -> list[Any]:
        return await asyncio.gather(*(looks.job(one) for one in (good, bad, "job_x")), return_exceptions=True)

    seen, failed, missing = asyncio.run(ask())
    assert (seen.job.id, type(failed), type(missing)) == (good, ValueError, NotFound)


def test_each_statement_of_a_look_sees_its_own_moment(world: World) -> None:
    """So an answer from before a change is never taken for one of after it, and kept."""
    with lookers(world.database.engine)() as session:
        before = session.scalar(select(func.count()).select_from(Job))
        world.submit(plan("distill"))
        assert (before, session.scalar(select(func.count()).select_from(Job))) == (0, 1)


def test_a_look_that_breaks_is_told_and_keeps_nobody_waiting(world: World, looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (world.submit(plan("distill", seed=seed)) for seed in range(2))
    began, go_on, look = threading.Event(), threading.Event(), looks._look

    def no_thread(ids: list[str]) -> Any:
        if began.is_set():
            return look(ids)
        began.set()
        go_on.wait(10)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(looks, "_look", no_thread)

    async def ask() -> list[Any]:
        unlucky = asyncio.create_task(looks.job(first))
        await asyncio.to_thread(began.wait, 10)
        came_since = asyncio.create_task(looks.job(second))
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.wait_for(asyncio.gather(unlucky, came_since, return_exceptions=True), 20)

    failed, seen = asyncio.run(ask())
    assert type(failed) is RuntimeError
    assert seen.job.id == second


def test_who_goes_away_takes_nothing_from_the_others(world: World, looks: Looks) -> None:
    job_id = world.submit(plan("distill"))

    async def ask() -> str:
        leaver, stayer = (asyncio.create_task(looks.job(job_id)) for _ in range(2))
        await asyncio.sleep(0)
        leaver.cancel()
        return (await stayer).job.id

    assert asyncio.run(ask()) == job_id


def test_more_than_fit_into_one_look_are_all_served(world: World, looks: Looks) -> None:
    job_id = world.submit(plan("distill"))

    async def ask() -> list[Any]:
        unknown = (looks.job(f"job_{n}") for n in range(2 * MOST))
        return await asyncio.gather(*unknown, looks.job(job_id), return_exceptions=True)

    *missing, seen = asyncio.run(ask())
    assert {type(one) for one in missing} == {NotFound}
    assert seen.job.id == job_id


def test_what_all_ask_for_is_renewed_while_nobody_waits(world: World) -> None:
    clock, job_id = Clock(), world.submit(plan("distill"))
    looks = Looks(lookers(world.database.engine), CapacityLimiter(1), Pace(), Recent(1.0, clock))

    async def place() -> int | None:
        seen = await looks.job(job_id)
        while looks._tasks:
            await asyncio.sleep(0.001)
        return seen.job.queue and seen.job.queue.ahead

    async def follow() -> list[int | None]:
        seen = [await place()]
        await asyncio.to_thread(world.submit, plan("distill", seed=1), priority=5)
        clock.now = 1.0 + GRACE / 2
        return [*seen, await place(), await place()]

    assert asyncio.run(follow()) == [0, 0, 1]


def test_a_connection_that_broke_meanwhile_is_replaced(postgresql: str, postgresql_engine: Engine, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=f"{postgresql}&application_name=looks")
    engine = connect(settings, pool_size=1, pool_pre_ping=False)
    looks = Looks(lookers(engine), CapacityLimiter(1), Pace(), Recent(1.0))

    def break_it() -> int:
        with connect(settings.model_copy(update={"database_url": postgresql})).connect() as own:
            ended = own.execute(text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'looks'"))
            return len(ended.all())

    async def ask() -> int:
        with pytest.raises(NotFound):
            await looks.job("job_x")
        ended = await asyncio.to_thread(break_it)
        with pytest.raises(NotFound):
            await looks.job("job_x")
        return ended

    try:
        assert asyncio.run(ask()) == 1
    finally:
        engine.dispose()


def test_a_database_that_is_away_is_told_to_each(world: World, looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> Any:
        raise OperationalError("SELECT", {}, Exception("connection refused"))

    monkeypatch.setattr("jobs.views.some", away)

    async def ask() -> list[Any]:
        return await asyncio.gather(looks.job("job_x"), looks.job("job_y"), return_exceptions=True)

    assert {type(one) for one in asyncio.run(ask())} == {OperationalError}
