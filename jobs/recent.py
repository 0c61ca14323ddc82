"""What many readers ask within a moment, and is the same for all of them, is asked once."""

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

T = TypeVar("T")

MANY = 1000  # answers kept at once
SHARE = 20  # so that no answer is asked for in more than a twentieth of the time, however costly it is


class Recent:
    """Answers that may be so many seconds old, or SHARE times as old as they took; of one process, for all its threads.

    With 0 seconds every answer is a new one.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._kept: dict[Hashable, tuple[float, Any]] = {}  # until when, and what
        self._lock = threading.Lock()

    def get(self, key: Hashable, ask: Callable[[], T], serves: Callable[[T], bool] = lambda kept: True) -> T:
        """The answer to `key`, asked anew if it is too old, or does not serve. Two threads that find it so may both ask."""
        now = self._clock()
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None and now < kept[0] and serves(kept[1]):
            return cast("T", kept[1])
        fresh = ask()
        if self._seconds > 0:
            took = self._clock() - now
            with self._lock:
                if len(self._kept) >= MANY:
                    self._kept.clear()
                self._kept[key] = (now + max(self._seconds, SHARE * took), fresh)
        return fresh

    def forget(self) -> None:
        """What was asked before a change is no answer after it."""
        with self._lock:
            self._kept.clear()


FRESH = Recent(0.0)
