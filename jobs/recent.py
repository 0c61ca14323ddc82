"""What many readers ask within a moment, and is the same for all of them, is asked once."""

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

T = TypeVar("T")

MANY = 1000  # answers kept at once


class Recent:
    """Answers that may be so many seconds old; of one process, for all its threads. With 0 seconds every answer is a new one."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._kept: dict[Hashable, tuple[float, Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, ask: Callable[[], T]) -> T:
        """The answer to `key`, asked anew if it is too old. Two threads that find it so may both ask."""
        now = self._clock()
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None and now - kept[0] < self._seconds:
            return cast("T", kept[1])
        fresh = ask()
        if self._seconds > 0:
            with self._lock:
                if len(self._kept) >= MANY:
                    self._kept.clear()
                self._kept[key] = (now, fresh)
        return fresh


FRESH = Recent(0.0)
