"""How often those who watch jobs shall ask: as often as this process can well answer all of them."""

import threading
import time
from collections.abc import Callable

LEAST, MOST = 0.5, 60.0  # seconds between two questions
SHARE = 0.25  # of one core, for looking at jobs; to send what was seen takes about as much again


class Pace:
    """Gives each who asks a moment of its own at which to ask again.

    Moments lie as far apart as the answers are costly, so those who keep to them never ask all at once, and never more than the
    process can bear: a few ask every half second, thousands every few seconds, and whoever watches a job of thousands of steps less
    often. Who does not come leaves no gap for long.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._free = clock()
        self._lock = threading.Lock()

    def again(self, cost: float) -> float:
        """Seconds after which to ask again, rounded to milliseconds. cost: processor seconds that the look has just taken."""
        with self._lock:
            now = self._clock()
            self._free = min(max(self._free, now + LEAST) + cost / SHARE, now + MOST)
            return round(self._free - now, 3)
