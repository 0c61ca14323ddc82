"""Carries what a running step says of itself to the database, about once a second, without ever holding the step up."""

import logging
import threading
from collections.abc import Callable

from sqlalchemy.orm import Session, sessionmaker

from ddcore.events import Event
from jobs.database import transact
from jobs.errors import LeaseLost
from jobs.records import record
from worker.patience import AWAY

_EVERY = 1.0  # seconds between two transactions
_BATCH = 1000  # events in one transaction
log = logging.getLogger(__name__)


class Recorder:
    """A sink of `ddcore.events` for one attempt. Keeps every metric and note until it is recorded, and the latest progress only.

    on_lost: called once, from this object's thread, when the attempt no longer holds the step.
    """

    def __init__(self, sessions: sessionmaker[Session], step_id: str, attempt: int, on_lost: Callable[[], None]) -> None:
        self._sessions, self._step_id, self._attempt, self._on_lost = sessions, step_id, attempt, on_lost
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._progress: Event | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="recorder", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if event["type"] == "progress":
                self._progress = event
            else:
                self._events.append(event)

    def close(self) -> list[Event]:
        """End the thread; what is still to be recorded, for the caller to record or to drop."""
        self._closing.set()
        self._thread.join()
        return self._take(None)

    def _take(self, limit: int | None) -> list[Event]:
        with self._lock:
            taken, self._events = self._events[:limit], self._events[limit:] if limit else []
            if self._progress is not None:
                taken.append(self._progress)
                self._progress = None
            return taken

    def _put_back(self, batch: list[Event]) -> None:
        with self._lock:
            for event in batch:
                if event["type"] == "progress":
                    self._progress = self._progress or event
            self._events = [e for e in batch if e["type"] != "progress"] + self._events

    def _loop(self) -> None:
        pause = _EVERY
        while not self._closing.wait(pause):
            batch = self._take(_BATCH)
            if not batch:
                continue
            try:
                transact(self._sessions, lambda s, batch=batch: record(s, self._step_id, self._attempt, batch))  # type: ignore[misc]
                pause = _EVERY
            except LeaseLost:
                self._on_lost()
                return
            except AWAY:
                if pause == _EVERY:
                    log.warning("progress cannot be recorded now; it is kept", extra={"step_id": self._step_id, "attempt": self._attempt})
                self._put_back(batch)
                pause = min(2 * pause, 10.0)
