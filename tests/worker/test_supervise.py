import math
import signal
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, make_url, select

from jobs import cancel, claims
from jobs.database import connect, now, sessions, transact
from jobs.models import Event
from jobs.settings import Settings
from tests.worker.puppet import Puppet, row, supervisor
from tests.worker.service import post
from tests.worker.swallower import Swallower
from worker import supervise
from worker.exits import Exit


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
