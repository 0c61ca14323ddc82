import signal
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, delete, func, select
from sqlalchemy.exc import OperationalError

from ddcore.plan import engine_digest
from jobs import claims, condemned
from jobs.database import sessions, transact
from jobs.models import Doorbell
from jobs.settings import Settings
from tests.worker.service import RedisServer, post, until
from worker import app, maintenance
from worker.app import make_app
from worker.maintenance import Duty, Maintenance


def test_a_duty_that_fails_is_tried_ever_more_slowly_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Any] = [OperationalError("select", {}, Exception("refused"))] * 8 + [0]

    def act() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    duty, waits = Duty("reap", 1.0, act), []
    with caplog.at_level("INFO"):
        while answers:
            began = time.monotonic()
            duty.run()
            waits.append(round(duty.due - began))
    assert waits == [2, 4, 8, 15, 15, 15, 15, 15, 1]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_fault_of_our_own_is_not_hidden_by_the_back_off() -> None:
    def act() -> int:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        Duty("reap", 1.0, act).run()


@pytest.fixture
def loop(settings: Settings, engine: Engine, redis_url: str) -> Maintenance:
    redis.from_url(redis_url).flushall()
    return Maintenance(settings.model_copy(update={"redis_url": redis_url, "ring_seconds": 0.0}), sessions(engine), make_app(redis_url))


def doorbells(engine: Engine) -> int:
    with sessions(engine)() as session:
        return session.scalar(select(func.count()).select_from(Doorbell)) or 0


def test_a_doorbell_is_sent_once_to_the_queue_of_its_step(loop: Maintenance, settings: Settings, engine: Engine, redis_url: str) -> None:
    post(settings, engine, num_images=4, method={"name": "random"})
    assert (loop.relay(), loop.relay(), doorbells(engine)) == (1, 0, 0)
    client = redis.from_url(redis_url)
    assert (client.llen("io"), client.llen("gpu"), client.llen("cpu")) == (1, 0, 0)
    assert b"step_" in client.lindex("io", 0)


def test_a_broker_that_is_away_keeps_the_doorbell(settings: Settings, engine: Engine) -> None:
    post(settings, engine, num_images=4, method={"name": "random"})
    away = Maintenance(settings, sessions(engine), make_app("unix:///nowhere/socket"))
    for duty in away.duties:
        duty.run()
    assert [duty.failures for duty in away.duties] == [1, 0, 1, 0, 0]
    assert doorbells(engine) == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_broker_that_falls_silent_counts_as_away(
    settings: Settings, engine: Engine, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "SILENT", 0.2)
    loop = Maintenance(settings, sessions(engine), make_app(redis_server.url))
    ringing = [duty for duty in loop.duties if duty.name in ("relay doorbells", "ring again")]
    for duty in ringing:
        duty.run()
    assert [duty.failures for duty in ringing] == [0, 0]
    post(settings, engine, num_images=4, method={"name": "random"})
    redis_server.process.send_signal(signal.SIGSTOP)
    thaw = threading.Timer(20, redis_server.process.send_signal, [signal.SIGCONT])  # a test that fails is to end, too
    thaw.start()
    try:
        for duty in ringing:
            duty.run()
        assert thaw.is_alive()
        assert [duty.failures for duty in ringing] == [1, 1]
    finally:
        thaw.cancel()
        redis_server.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("error", [redis.exceptions.TimeoutError("silent"), redis.exceptions.ResponseError("no memory")])
def test_whatever_redis_says_ends_no_maintenance(error: redis.RedisError) -> None:
    def act() -> int:
        raise error

    duty = Duty("ring again", 1.0, act)
    duty.run()
    assert duty.failures == 1


def test_a_flushed_broker_is_seen_and_rung_again(loop: Maintenance, settings: Settings, engine: Engine, redis_url: str) -> None:
    post(settings, engine, num_images=4, method={"name": "random"})
    loop.relay()
    assert loop._empty_queues() == ["gpu", "cpu"]
    client = redis.from_url(redis_url)
    for _ in range(3):
        client.flushall()
        assert loop._empty_queues() == ["gpu", "cpu", "io"]
        time.sleep(0.01)
        assert loop.ring_again() == 1
        loop.relay()
        assert client.llen("io") == 1


def test_what_was_ready_when_the_service_stopped_is_rung_at_once(
    loop: Maintenance, settings: Settings, engine: Engine, redis_url: str
) -> None:
    post(settings, engine, num_images=4, method={"name": "random"})
    loop.relay()
    patient = loop.settings.model_copy(update={"ring_seconds": 1000.0})
    assert Maintenance(patient, loop.sessions, loop.app).ring_again() == 0, "the broker has its doorbell"
    redis.from_url(redis_url).flushall()
    again = Maintenance(patient, loop.sessions, loop.app)
    assert again.ring_again() == 1
    again.relay()
    redis.from_url(redis_url).flushall()
    assert again.ring_again() == 0, "later it waits as ever"


def test_losing_every_doorbell_row_is_healed_too(loop: Maintenance, settings: Settings, engine: Engine) -> None:
    post(settings, engine, num_images=4, method={"name": "random"})
    transact(sessions(engine), lambda s: s.execute(delete(Doorbell)))
    assert loop.relay() == 0
    assert loop.ring_again() == 1
    assert loop.relay() == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_slow_store_keeps_no_other_duty_waiting_nor_the_end(
    settings: Settings, engine: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_LAST", 0.1)
    asked, answer = threading.Event(), threading.Event()

    def remove(*args: object, **named: object) -> condemned.Amount:
        asked.set()
        assert answer.wait(30)
        return condemned.Amount()

    monkeypatch.setattr(condemned, "remove", remove)
    loop, stop = Maintenance(settings, sessions(engine), make_app(redis_url)), threading.Event()
    running = threading.Thread(target=loop.run, args=(stop,), daemon=True)
    running.start()
    try:
        assert asked.wait(10)
        post(settings, engine, num_images=4, method={"name": "random"})
        until(lambda: not doorbells(engine), 5)
        stop.set()
        running.join(5)
        assert not running.is_alive()
    finally:
        stop.set()
        answer.set()


def test_a_fault_of_our_own_in_a_long_duty_ends_the_process_too(loop: Maintenance) -> None:
    def act() -> int:
        raise KeyError("a bug")

    loop.duties.append(Duty("tidy", 1.0, act, long=True))
    with pytest.raises(KeyError):
        loop.run(threading.Event())


def test_an_outage_or_a_sleep_is_not_held_against_the_workers(
    loop: Maintenance, settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_RENEWAL", 0.3)

    def expire() -> None:
        taken = transact(sessions(engine), lambda s: claims.take(s, "io", "me", engine_digest(), lease_seconds=0.0))
        assert taken is not None

    def away(ago: timedelta) -> None:
        loop._looked -= ago.total_seconds()

    def sleep(ago: timedelta) -> None:
        assert loop._seen is not None
        loop._seen -= ago  # the other clock stands still while a machine sleeps

    post(settings, engine, num_images=4, method={"name": "random"})
    for happens in (lambda ago: None, away, sleep):  # the beginning; the database was away; the machine slept
        happens(timedelta(seconds=settings.lease_seconds))
        expire()
        assert loop.reap() == 0, "whoever lives gets the time to renew"
        assert until(loop.reap, 5) == 1
    post(settings, engine, num_images=4, method={"name": "random"}, dataset="digits-test")
    loop._looked = time.monotonic()
    expire()
    assert loop.reap() == 1, "no outage: at once"
