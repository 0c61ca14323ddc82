"""What many readers ask within a moment, and is the same for all of them, is asked once."""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from sqlalchemy.orm import Session

T = TypeVar("T")

MANY = 1000  # answers kept at once
SHARE = 20  # so that no answer is asked for in more than a twentieth of the time, however costly it is
GRACE = 5.0  # seconds for which an answer that is too old is still given, while a new one is asked for


@dataclass(frozen=True)
class _Kept:
    answer: Any
    old: float  # from when on it is to be asked for anew
    ask: Callable[[Session], Any]


class Recent:
    """Answers that may be so many seconds old, or SHARE times as old as they took; of one process, for all its threads.

    Who finds one too old is given it all the same, for GRACE seconds more, if somebody calls `renew` meanwhile: so nobody waits for an
    answer that all ask for. With 0 seconds every answer is a new one.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._kept: dict[Hashable, _Kept] = {}
        self._wanted: set[Hashable] = set()  # those that were given although they were too old
        self._changes = 0
        self._lock = threading.Lock()

    def get(self, session: Session, key: Hashable, ask: Callable[[Session], T], serves: Callable[[T], bool] = lambda kept: True) -> T:
        """The answer to `key`, asked now if there is none, or it is much too old, or does not serve."""
        now = self._clock()
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and now < kept.old + GRACE and serves(kept.answer):
                if now >= kept.old:
                    self._wanted.add(key)
                return cast("T", kept.answer)
        return cast("T", self._ask(session, key, ask))

    @property
    def wanted(self) -> bool:
        """Whether there is something to renew."""
        return bool(self._wanted)

    def renew(self, session: Session) -> None:
        """Ask anew for what was too old when it was given."""
        with self._lock:
            wanted = {key: self._kept[key].ask for key in self._wanted if key in self._kept}
            self._wanted.clear()
        for key, ask in wanted.items():
            self._ask(session, key, ask)

    def forget(self) -> None:
        """What was asked before a change is no answer after it."""
        with self._lock:
            self._kept.clear()
            self._changes += 1

    def _ask(self, session: Session, key: Hashable, ask: Callable[[Session], Any]) -> Any:
        began, changes = self._clock(), self._changes
        answer = ask(session)
        if self._seconds > 0:
            took = self._clock() - began
            with self._lock:
                if len(self._kept) >= MANY:
                    self._kept.clear()
                if changes == self._changes:
                    self._kept[key] = _Kept(answer, began + max(self._seconds, SHARE * took), ask)
        return answer


FRESH = Recent(0.0)
