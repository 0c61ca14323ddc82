import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, make_url, select
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from jobs import cancel, catalogue, claims
from jobs.database import connect, now, sessions, transact
from jobs.models import Event, Step
from jobs.settings import Settings
from jobs.store import open_store
from tests.worker.service import archive, post
from tests.worker.swallower import Swallower
from worker import supervise
from worker.exits import Exit
from worker.launcher import Launcher
from worker.supervise import Supervisor


class Puppet(Launcher):
    """A runner that ends with `code` after `looks` looks, or when it gets one of the signals in `ends_on`."""

    def __init__(self, code: int = 0, looks: float = 1, words: str = "", quiet: float = 0.0, ends_on: dict[int, int] | None = None) -> None:
        super().__init__()
        self.code, self.looks, self.words, self.quiet = code, looks, words, quiet
        self.ends_on = {signal.SIGKILL: -signal.SIGKILL} if ends_on is None else ends_on
        self.signals: list[int] = []
        self.before_end: Any = lambda step_id, attempt: None

    def start(self, step_id: str, attempt: int) -> None:
        self.started, self.pid = (step_id, attempt), 1 << 30

    def poll(self) -> int | None:
        self.looks -= 1
        if self.looks < 0:
            self.before_end(*self.started)
            return self.code
        return None

    def signal(self, number: int) -> None:
        self.signals.append(number)
        if number in self.ends_on:
            self.code, self.looks = self.ends_on[number], 0

    def silence(self) -> float:
        return self.quiet

    def last_words(self) -> str:
        return self.words


@pytest.fixture
def step_id(engine: Engine, settings: Settings, tmp_path: Path) -> str:
    """A step that is ready: an upload that the catalogue wants read."""
    store = open_store(settings)
    upload = catalogue.read_upload(store, archive(tmp_path / "a.zip"))
    dataset = transact(sessions(engine), lambda s: catalogue.add_upload(s, store, upload, "mine"))
    with sessions(engine).begin() as session:
        return session.scalars(select(Step.id).where(Step.key == dataset.step_key)).one()


def supervisor(settings: Settings, engine: Engine, puppet: Puppet, **changes: Any) -> Supervisor:
    quick: dict[str, Any] = {"heartbeat_seconds": 0.1, "stop_grace_seconds": 0.3} | changes
    return Supervisor(settings.model_copy(update=quick), sessions(engine), puppet, "me")


def row(engine: Engine, step_id: str) -> Step:
    with sessions(engine)() as session:
        return session.get_one(Step, step_id)


def test_a_step_that_is_not_ready_is_left_alone(settings: Settings, engine: Engine, step_id: str) -> None:
    transact(sessions(engine), lambda s: claims.claim(s, step_id, "another"))
    assert supervisor(settings, engine, Puppet()).run("io") == "ignored"
    assert supervisor(settings, engine, Puppet()).run("gpu") == "ignored"
    assert (row(engine, step_id).worker, row(engine, step_id).attempt) == ("another", 1)


@pytest.mark.parametrize(
    ("code", "words", "error", "detail"),
    [
        (-signal.SIGKILL, "", "worker_lost", "the runner was killed by SIGKILL"),
        (-signal.SIGSEGV, "Fatal Python error", "worker_lost", "the runner was killed by SIGSEGV"),
        (1, "Traceback:\nImportError: x", "internal", "the runner ended with code 1"),
    ],
)
def test_a_crash_counts_and_the_step_is_ready_again(
    settings: Settings, engine: Engine, step_id: str, code: int, words: str, error: str, detail: str
) -> None:
    assert supervisor(settings, engine, Puppet(code, words=words)).run("io") == "crashed"
    step = row(engine, step_id)
    assert (step.state, step.failures, step.attempt, step.error_code) == ("ready", 1, 1, error)
    assert step.error_detail == detail
    with sessions(engine)() as session:
        (said,) = session.scalars(select(Event).where(Event.step_id == step_id, Event.type == "step_retried"))
    assert said.data.get("trace", "") == words
    assert ("events" in str(step.error_hint)) == bool(words)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
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


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
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


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
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


@pytest.fixture
def swallower(settings: Settings) -> Iterator[Swallower]:
    there = Swallower(str(make_url(settings.database_url).query["host"]))
    yield there
    there.close()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("taken_over", [False, True])
def test_a_claim_whose_commit_was_never_answered_is_gone_on_with_if_it_stands(
    settings: Settings, engine: Engine, step_id: str, swallower: Swallower, monkeypatch: pytest.MonkeyPatch, taken_over: bool
) -> None:
    def pass_time(seconds: float) -> None:
        if taken_over and swallower.lost and row(engine, step_id).attempt == 1:
            transact(sessions(engine), lambda s: claims.release(s, step_id, 1))
            transact(sessions(engine), lambda s: claims.claim(s, step_id, "another"))

    url = make_url(settings.database_url)
    there = f"postgresql://{url.username}@127.0.0.1:{swallower.port}/{url.database}"
    behind = connect(settings.model_copy(update={"database_url": there}))
    transact(sessions(behind), now)
    swallower.armed = True
    monkeypatch.setattr(supervise.time, "sleep", pass_time)
    ended = supervisor(settings, behind, Puppet(Exit.STOPPED)).run("io")
    behind.dispose()
    assert swallower.lost == 1
    step = row(engine, step_id)
    expected = ("ignored", "running", "another", 2) if taken_over else ("handed back", "ready", None, 1)
    assert (ended, step.state, step.worker, step.attempt) == expected


def test_the_last_crash_allowed_fails_the_step(settings: Settings, engine: Engine, step_id: str) -> None:
    for _ in range(settings.max_attempts):
        supervisor(settings, engine, Puppet(-signal.SIGKILL)).run("io")
    assert (row(engine, step_id).state, row(engine, step_id).failures) == ("failed", 3)


def test_a_silent_runner_is_killed_and_counted(settings: Settings, engine: Engine, step_id: str) -> None:
    puppet = Puppet(looks=math.inf, quiet=1000.0)
    assert supervisor(settings, engine, puppet).run("io") == "crashed"
    assert puppet.signals == [signal.SIGKILL]
    assert "no sign of life for 600 s" in str(row(engine, step_id).error_detail)


@pytest.mark.parametrize("obedient", [True, False])
def test_a_cancelled_step_is_asked_to_stop_and_then_killed(settings: Settings, engine: Engine, obedient: bool) -> None:
    job_id, steps = post(settings, engine, dataset="digits-train", num_images=4, method={"name": "random"})
    step_id = next(step for name, step in steps.items() if name.startswith("dataset"))
    puppet = Puppet(looks=math.inf, ends_on={signal.SIGTERM: Exit.STOPPED} if obedient else None)
    begun = puppet.start

    def start(step_id: str, attempt: int) -> None:
        begun(step_id, attempt)
        transact(sessions(engine), lambda s: cancel.cancel(s, job_id))

    puppet.start = start  # type: ignore[method-assign]
    assert supervisor(settings, engine, puppet).run("io") == "handed back"
    assert puppet.signals == [signal.SIGTERM] if obedient else [signal.SIGTERM, signal.SIGKILL]
    assert (row(engine, step_id).state, row(engine, step_id).failures) == ("cancelled", 0)


def test_draining_hands_the_step_back_uncounted(settings: Settings, engine: Engine, step_id: str) -> None:
    one = supervisor(settings, engine, Puppet(looks=math.inf, ends_on={signal.SIGTERM: Exit.STOPPED}))
    one.draining = True
    assert one.run("io") == "handed back"
    assert (row(engine, step_id).state, row(engine, step_id).failures) == ("ready", 0)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
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


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
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


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
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


def test_a_lease_that_was_taken_over_is_left_to_its_new_owner(settings: Settings, engine: Engine, step_id: str) -> None:
    def take_over(_: str, attempt: int) -> None:
        transact(sessions(engine), lambda s: claims.release(s, step_id, attempt))
        transact(sessions(engine), lambda s: claims.claim(s, step_id, "another"))

    puppet = Puppet(looks=math.inf, ends_on={signal.SIGTERM: Exit.STOPPED})
    begun = puppet.start
    puppet.start = lambda step, attempt: (begun(step, attempt), take_over(step, attempt))  # type: ignore[assignment,return-value]
    assert supervisor(settings, engine, puppet).run("io") == "lost"
    assert puppet.signals == [signal.SIGTERM]
    assert (row(engine, step_id).state, row(engine, step_id).worker, row(engine, step_id).attempt) == ("running", "another", 2)


def test_what_the_runner_recorded_stands(settings: Settings, engine: Engine, step_id: str) -> None:
    puppet = Puppet(Exit.FAILED)
    puppet.before_end = lambda step, attempt: transact(
        sessions(engine), lambda s: claims.fail(s, step, attempt, "bad_dataset", "not an image", "try another")
    )
    assert supervisor(settings, engine, puppet).run("io") == "failed"
    step = row(engine, step_id)
    assert (step.state, step.error_code, step.error_detail) == ("failed", "bad_dataset", "not an image")
    with sessions(engine)() as session:
        assert len(session.scalars(select(Event).where(Event.step_id == step_id, Event.type == "step_failed")).all()) == 1
