"""Transactions are repeated where that helps, and a frozen process does not hold up the others."""

import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from jobs import database as module
from jobs.database import REPEATS, connect, lock_graph, now, readers
from jobs.ids import new_id
from jobs.models import Dataset, Step
from jobs.settings import Settings
from tests.conftest import Database
from tests.jobs.harness import World, at_once, plan


def _step(key: str) -> Step:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    return Step(id=new_id("step"), key=key, kind="experts", queue="gpu", params={}, state="ready", max_attempts=3, created_at=at)


def test_one_key_cannot_count_twice_whatever_the_code_does(database: Database) -> None:
    tries = 0

    def work(session: Session) -> None:
        nonlocal tries
        tries += 1
        session.add(_step("k"))

    database.write(work)
    tries = 0
    with pytest.raises(IntegrityError):
        database.write(work)
    assert tries == REPEATS


def test_who_loses_a_unique_key_tries_again_and_finds_the_winner(database: Database) -> None:
    def work(session: Session) -> str:
        found = session.scalar(select(Step.id).where(Step.key == "k"))
        time.sleep(0.1)
        if found is None:
            step = _step("k")
            session.add(step)
            return step.id
        return found

    assert len(set(at_once([lambda: database.write(work)] * 3))) == 1


def test_readers_do_not_wait_for_a_writer(world: World) -> None:
    job_id = world.submit(plan("distill"))
    with world.database.sessions.begin() as session:
        lock_graph(session)
        session.add(_step("uncommitted"))
        session.flush()
        began = time.monotonic()
        assert world.job(job_id).state == "queued"
        assert time.monotonic() - began < 10


def test_changes_of_the_graph_wait_for_each_other(database: Database) -> None:
    order: list[str] = []

    def work(session: Session) -> None:
        lock_graph(session)
        session.execute(text("SELECT 1"))
        order.append("in")
        time.sleep(0.05)
        order.append("out")

    at_once([lambda: database.write(work)] * 4)
    assert order == ["in", "out"] * 4


def test_the_clock_is_aware_and_right(database: Database) -> None:
    assert abs(database.read(now) - datetime.now(UTC)) < timedelta(seconds=5)


def test_a_moment_keeps_its_instant_and_a_naive_one_is_refused(database: Database) -> None:
    moment = datetime(2030, 6, 1, 12, 30, 15, 123456, tzinfo=UTC)
    step = _step("k")
    step.ready_at = moment.astimezone(tz=None)
    database.write(lambda s: s.add(step))
    kept = database.read(lambda s: s.scalar(select(Step.ready_at)))
    assert (kept, kept and kept.utcoffset()) == (moment, timedelta(0))
    with pytest.raises(Exception, match="without a time zone"):
        database.read(lambda s: s.scalars(select(Dataset).where(Dataset.created_at < datetime(2030, 1, 1))).all())  # noqa: DTZ001


def test_ids_rise_also_within_a_millisecond() -> None:
    ids = [new_id("job") for _ in range(2000)]
    assert ids == sorted(set(ids))
    assert {len(one) for one in ids} == {30}


def test_settings_are_read_from_the_environment_and_make_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_HOME", "/data/potstill")
    monkeypatch.setenv("POTSTILL_LEASE_SECONDS", "60")
    settings = Settings()
    assert (settings.database_url, str(settings.store)) == ("sqlite:////data/potstill/potstill.db", "/data/potstill/blobs")
    with pytest.raises(ValueError, match=r"heartbeat_seconds \(40\) must be at most half of lease_seconds \(60\)"):
        Settings(heartbeat_seconds=40)


def test_a_reader_sees_one_moment(database: Database) -> None:
    def steps(session: Session) -> int:
        return session.scalar(select(func.count()).select_from(Step)) or 0

    with readers(database.engine)() as session:
        assert steps(session) == 0
        database.write(lambda s: s.add(_step("k")))
        assert steps(session) == 0, "a job's state and its result would not fit together"
    assert database.read(steps) == 1


def test_a_database_that_says_nothing_is_an_error_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._WATCHFUL, "connect_timeout", "2")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"postgresql://anyone@127.0.0.1:{mute.getsockname()[1]}/any"
        silent = connect(Settings(home=tmp_path, database_url=url))
        with pytest.raises(OperationalError, match="timeout"):
            silent.connect()
    patient = connect(Settings(home=tmp_path, database_url=f"{url}?connect_timeout=33"))
    assert patient.url.query["connect_timeout"] == "33"
    assert patient.url.query["tcp_user_timeout"] == "20000"
