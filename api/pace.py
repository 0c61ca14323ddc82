"""How often those who watch jobs shall ask: as often as this process can well answer all of them."""

import threading
import time
from collections.abc import Callable

LEAST, MOST = 0.5, 60.0  # seconds between two questions
BUSY = 0.25  # looks at jobs under way at any moment, on average


class Pace:
    """Gives each who asks a moment of its own at which to ask again.

    Moments lie as far apart as the looks take, so those who keep to them never ask all at once, and never more than process, database
    and machine can bear: a few ask every half second, thousands every minute, and all less often while the machine is busy with
    something else, or jobs have thousands of steps. Who does not come leaves no gap for long.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._free = clock()
        self._lock = threading.Lock()

    def again(self, took: float) -> float:
        """Seconds after which to ask again, rounded to milliseconds. took: seconds in which one has just looked."""
        with self._lock:
            now = self._clock()
            self._free = min(max(self._free, now + LEAST) + took / BUSY, now + MOST)
            return round(self._free - now, 3)
