"""`python -m worker.maintenance`: relays the outbox to Celery, reaps expired leases, rings again, tidies the store.

Several may run at once.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import redis
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy.orm import Session, sessionmaker

from jobs import catalogue, claims, collect, condemned, logs, outbox, retention, workers
from jobs.adoption import adopt
from jobs.database import connect, now, sessions, transact
from jobs.errors import StoreAway, StoreUnusable, WrongRevision
from jobs.migrate import check_revision
from jobs.models import QUEUES
from jobs.settings import Settings, get_settings
from jobs.store import open_store
from worker.app import TASK, make_app
from worker.patience import AWAY, patiently

RELAY_EVERY = 0.3  # seconds
FORGET_EVERY = 600.0
DELETE_EVERY = 10.0
EXPIRE_EVERY = 600.0
_LONGEST = 15.0  # seconds between two tries of a duty that fails
# Seconds in which every worker that lives will have renewed its lease, once the database is there again: one try to connect takes up to 10.
_RENEWAL = 15.0
_LAST = 5.0  # seconds that a request to the store may take when the process is told to end
log = logging.getLogger(__name__)


@dataclass
class Duty:
    """Something to do again and again. every: seconds. A duty that fails is tried ever more slowly, and logged once.

    long: it may take so long that the others are not to wait for it.
    """

    name: str
    every: float
    act: Callable[[], int]
    long: bool = False
    due: float = 0.0
    failures: int = 0

    def run(self) -> None:
        try:
            count = self.act()
        except (*AWAY, BrokerError, redis.RedisError, OSError, StoreAway) as error:
            if not self.failures:
                log.warning("%s fails, and is tried again: %s", self.name, (str(error).splitlines() or [type(error).__name__])[0])
            self.failures += 1
        else:
            if self.failures:
                log.info("%s works again", self.name)
            self.failures = 0
            if count:
                log.info("%s: %d", self.name, count)
        self.due = time.monotonic() + min(self.every * 2**self.failures, max(self.every, _LONGEST))


class Maintenance:
    """The duties of one process, over one database and one broker."""

    def __init__(self, settings: Settings, factory: sessionmaker[Session], app: Celery) -> None:
        self.settings, self.sessions, self.app = settings, factory, app
        self.store = open_store(settings)
        self._begun = False  # whether doorbells have been looked after once
        self._looked = -math.inf  # when leases could last be looked at,
        self._seen: datetime | None = None  # and by the database's clock
        self._reap_from = 0.0
        slow = min(5.0, settings.lease_seconds / 3)
        self.duties = [
            Duty("relay doorbells", RELAY_EVERY, self.relay),
            Duty("reap expired leases", slow, self.reap),
            Duty("ring again", min(5.0, settings.ring_seconds / 3), self.ring_again),
            Duty("forget workers long gone", FORGET_EVERY, lambda: transact(self.sessions, workers.forget)),
            Duty("delete condemned files", DELETE_EVERY, lambda: condemned.remove(self.sessions, self.store, rounds=1).files, long=True),
        ]
        if lives := retention.lifetimes(settings.keep_days):
            expire = partial(collect.expire, self.sessions, lives)
            self.duties.append(Duty("let go of files of steps", EXPIRE_EVERY, lambda: sum(len(files) for _, files in expire()), long=True))

    def relay(self) -> int:
        return outbox.relay(self.sessions, self._send)

    def reap(self) -> int:
        """While the database was away no lease could be renewed: it would be a mistake to take the living for dead when it comes back.

        Nor while the machine slept, which only the clock by which leases end shows, or when somebody put that clock forward.
        """
        lease = self.settings.lease_seconds
        at = transact(self.sessions, now)
        jump = 0.0 if self._seen is None else (at - self._seen).total_seconds()
        if max(time.monotonic() - self._looked, jump) > lease - self.settings.heartbeat_seconds:  # long enough to matter
            self._reap_from = time.monotonic() + min(_RENEWAL, lease / 2)
        self._looked, self._seen = time.monotonic(), at
        return transact(self.sessions, claims.reap) if self._looked >= self._reap_from else 0

    def ring_again(self) -> int:
        empty = self._empty_queues()
        # A service that was stopped begins again with an empty broker, and with steps that were handed back: they need not wait.
        after = self.settings.ring_seconds if self._begun or len(empty) < len(QUEUES) else 0.0
        count = transact(self.sessions, lambda s: outbox.ring_again(s, after=after, empty=empty))
        self._begun = True
        return count

    def _send(self, step_id: str, queue: str) -> None:
        self.app.send_task(TASK, args=[step_id], queue=queue)

    def _empty_queues(self) -> list[str]:
        """Queues that hold no message: a step that is ready and waits in none of them has lost its doorbell."""
        with self.app.connection_for_read() as connection:
            channel = connection.default_channel
            return [name for name in QUEUES if not channel.client.llen(name)]

    def run(self, stop: threading.Event) -> None:
        """Do every duty when it is due until `stop` is set, the long ones beside the others."""
        faults: list[Exception] = []

        def beside() -> None:
            try:
                _repeat([duty for duty in self.duties if duty.long], stop)
            except Exception as fault:
                faults.append(fault)
                stop.set()

        thread = threading.Thread(target=beside, name="long duties", daemon=True)
        thread.start()
        _repeat([duty for duty in self.duties if not duty.long], stop)
        thread.join(_LAST)  # a request that takes longer is left to the store: `jobs.condemned` expects that
        if faults:
            raise faults[0]


def _repeat(duties: Sequence[Duty], stop: threading.Event) -> None:
    while not stop.is_set():
        for duty in duties:
            if time.monotonic() >= duty.due:
                duty.run()
        stop.wait(max(0.0, min(duty.due for duty in duties) - time.monotonic()))


def main() -> None:
    settings = get_settings()
    logs.configure(settings.log_level, settings.log_json)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    engine = connect(settings)
    factory = sessions(engine)
    try:
        patiently(factory, lambda s: s.connection().closed, stop.wait)  # wait for the database, then look at its revision
        check_revision(engine)
        patiently(factory, catalogue.ensure_builtins, stop.wait)
        if adopted := patiently(factory, adopt, stop.wait):
            log.info("waiting steps of another engine that this one computes the same: %d", adopted)
        log.info("maintenance begins")
        Maintenance(settings, factory, make_app(settings.redis_url)).run(stop)
    except (StoreUnusable, WrongRevision) as error:
        raise SystemExit(f"{error.detail}: {error.hint}") from None
    except AWAY:
        log.info("told to stop before the database could be reached")
    engine.dispose()
    log.info("maintenance ends")


if __name__ == "__main__":
    main()
