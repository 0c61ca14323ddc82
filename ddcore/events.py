"""What a running step says of itself: progress, metrics, notes; and the one place where it learns that it must stop, or save its work."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ddcore.errors import Stopped

Event = dict[str, Any]  # {"type": "progress" | "metric" | "note", ...}: plain JSON, so that any sink can carry it

MIN_INTERVAL = 0.1  # seconds between two progress events: at most ten a second
PULSE = 1.0  # seconds between two looks, inside a long unit of work, at whether to stop
CHECKPOINT_SECONDS = 60.0


@dataclass
class Reporter:
    """Throttles what a step says and raises `Stopped` where it may end.

    sink: receives each event (a dict of plain JSON values). should_stop: polled at every `progress` call; cheap. checkpoint_seconds:
    between two checkpoints, and so about the work that a killed step loses; 0 is as often as the step can.
    """

    sink: Callable[[Event], None] = lambda event: None
    should_stop: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    _last: float = field(default=-1e9, init=False)
    _asked: float = field(init=False)
    _saved: float = field(init=False)
    _said: tuple[int, int, str, str] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._asked = self._saved = self.clock()

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Report `done` of `total` units; call it every iteration. Raises `Stopped` if the caller asked for it."""
        if self.should_stop():
            raise Stopped
        now = self._asked = self.clock()
        self._said = done, total, unit, note
        if now - self._last >= MIN_INTERVAL or done >= total:
            self._last = now
            self.sink({"type": "progress", "done": int(done), "total": int(total), "unit": unit, "note": note})

    def pulse(self) -> None:
        """Call it every moment inside a long unit of work: once a second it says the last progress again. Raises `Stopped` likewise."""
        if self.clock() - self._asked < PULSE:
            return
        if self._said is not None:
            self.progress(*self._said)
        elif self.should_stop():
            raise Stopped

    def metric(self, name: str, x: float, value: float) -> None:
        """Report one point of the curve `name`; the caller thins (a few hundred points a curve are plenty)."""
        self.sink({"type": "metric", "name": name, "x": float(x), "value": float(value)})

    def again(self, curves: dict[str, list[list[float]]]) -> None:
        """Report whole curves, [x, value] each, from a checkpoint: who was killed behind it may not have been heard to the end."""
        for name, points in curves.items():
            for x, value in points:
                self.metric(name, x, value)

    def note(self, text: str) -> None:
        """Report something a person should read, such as a recovery or a fallback."""
        self.sink({"type": "note", "text": text})

    def checkpoint_due(self) -> bool:
        """Whether to write a checkpoint now: that long has passed since this last said so, or since the beginning."""
        now = self.clock()
        if now - self._saved < self.checkpoint_seconds:
            return False
        self._saved = now
        return True
