"""Faults of the machine on which a supervisor runs, and not of the step."""

import math
import signal
import time

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from jobs import claims
from jobs.database import sessions, transact
from jobs.settings import Settings
from tests.worker.puppet import Puppet, row, supervisor
from worker import supervise
from worker.exits import Exit

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def test_a_template_that_could_not_start_is_named_and_leaves_the_step_to_others(
    settings: Settings, engine: Engine, step_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "_UNFIT", 0.2)
    monkeypatch.setattr(supervise, "_LONGEST_UNFIT", 0.3)
    puppet = Puppet(3)
    puppet.before_end = lambda step, attempt: setattr(puppet, "pid", None)
    broken = supervisor(settings, engine, puppet)
    waits = []
    for _ in range(2):
        began = time.monotonic()
        assert broken.run("io") == "crashed"
        waits.append(time.monotonic() - began)
    assert waits[0] >= 0.2
    assert waits[1] >= 0.3
    step = row(engine, step_id)
    assert (step.error_code, step.error_detail) == ("internal", "the process that runs steps could not start: it ended with code 3")
    assert step.failures == 0, "it is the machine's"
    puppet.before_end = lambda step, attempt: None
    broken.run("io")
    assert broken._unfit == 0


def test_a_worker_whose_disk_was_full_leaves_the_step_to_others(
    settings: Settings, engine: Engine, step_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "_UNFIT", 0.2)
    puppet = Puppet(Exit.FULL)
    puppet.before_end = lambda step, attempt: transact(
        sessions(engine), lambda s: claims.fail(s, step, attempt, "internal", "full", retryable=True, machine=True)
    )
    one, began = supervisor(settings, engine, puppet), time.monotonic()
    assert one.run("io") == "failed"
    assert time.monotonic() - began >= 0.2
    assert (row(engine, step_id).state, row(engine, step_id).failures) == ("ready", 0)


def test_no_step_is_claimed_while_scratch_has_no_room(
    settings: Settings, engine: Engine, step_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = supervisor(settings, engine, Puppet(Exit.STOPPED), store_reserve_bytes=5)
    free = iter([5, 4, 5, 6])
    monkeypatch.setattr(supervise, "free_bytes", lambda folder: next(free) if folder == settings.scratch else 6)
    assert one.run("io") == "handed back"
    assert next(free, None) is None
    monkeypatch.setattr(supervise, "free_bytes", lambda folder: 5)
    one.draining = True
    assert one.run("io") == "ignored"
    assert (row(engine, step_id).state, row(engine, step_id).attempt) == ("ready", 1)


def test_a_database_that_is_away_during_a_drain_gets_the_step_back_all_the_same(
    settings: Settings, engine: Engine, step_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, release = [OperationalError("update", {}, Exception("the server is restarting"))] * 3, claims.release

    def try_to_release(session: Session, step_id: str, attempt: int) -> None:
        if away:
            raise away.pop()
        release(session, step_id, attempt)

    monkeypatch.setattr(claims, "release", try_to_release)
    monkeypatch.setattr(supervise.time, "sleep", lambda seconds: None)
    one = supervisor(settings, engine, Puppet(looks=math.inf, ends_on={signal.SIGTERM: Exit.STOPPED}))
    one.draining = True
    assert one.run("io") == "handed back"
    assert row(engine, step_id).state == "ready"


def test_a_worker_that_is_to_end_claims_nothing_more(
    settings: Settings, engine: Engine, step_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: object, **named: object) -> None:
        raise OperationalError("select", {}, Exception("refused"))

    monkeypatch.setattr(claims, "take", away)
    one = supervisor(settings, engine, Puppet())
    one.draining = True
    began = time.monotonic()
    with pytest.raises(OperationalError):
        one.run("io")
    assert time.monotonic() - began < 2


def test_no_runner_goes_on_unwatched_after_a_fault(
    settings: Settings, engine: Engine, step_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object, **named: object) -> None:
        raise ProgrammingError("update", {}, Exception("permission denied for table steps"))

    monkeypatch.setattr(claims, "heartbeat", forbidden)
    one = supervisor(settings, engine, Puppet(looks=math.inf))
    closed: list[str] = []
    monkeypatch.setattr(one.launcher, "close", lambda: closed.append("closed"))
    with pytest.raises(ProgrammingError):
        one.run("io")
    assert closed == ["closed"]
