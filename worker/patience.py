"""Work that outlasts a database that is away for a while, or an artifact store that is away or full."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, TimeoutError
from sqlalchemy.orm import Session, sessionmaker

from jobs.database import transact
from jobs.errors import StoreAway, StoreFull

AWAY = (OperationalError, InterfaceError, InternalError, TimeoutError)  # what SQLAlchemy raises when the database cannot be reached

_LONGEST = 10.0  # seconds between two tries
_STORE_AWAY = 600.0  # seconds: a store that is set up wrongly is never back
T = TypeVar("T")
log = logging.getLogger(__name__)


def patiently(sessions: sessionmaker[Session], work: Callable[[Session], T], wait: Callable[[float], bool]) -> T:
    """Commit `work`, again and again while the database is away; other errors pass through.

    wait(seconds) pauses and says whether to give up, which raises the database's own error. `threading.Event.wait` fits.
    """
    pause = 0.5
    while True:
        try:
            return transact(sessions, work)
        except AWAY as error:
            if pause == 0.5:
                log.warning("the database cannot be reached; trying again: %s", _first_line(error))
            if wait(pause):
                raise
            pause = min(2 * pause, _LONGEST)


def with_store(work: Callable[[], T], wait: Callable[[float], bool]) -> T:
    """Do `work`, again while the artifact store is away or full, for up to ten minutes in all; so an outage costs no attempt.

    wait(seconds) pauses and says whether to give up. Then, and at the end, the store's own error is raised.
    """
    pause, until = 0.5, time.monotonic() + _STORE_AWAY
    while True:
        try:
            return work()
        except (StoreAway, StoreFull) as error:
            log.warning("%s", error.detail)
            if time.monotonic() > until or wait(pause):
                raise
            pause = min(2 * pause, _LONGEST)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
