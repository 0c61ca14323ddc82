"""How far the host may be ahead of a CUDA device: a stop and a checkpoint wait for all that is queued, so that must not be minutes."""

import time
from collections import deque
from collections.abc import Callable

import torch
from torch import cuda

POLL = 0.001  # seconds between two looks at the device


class Ahead:
    """Keeps at most `most` pieces of work queued on a CUDA device; elsewhere each is done when it has been called.

    From 1 on, the device has its next piece before it is done with the one in hand, and so waits for nothing.
    """

    def __init__(self, device: torch.device, most: int) -> None:
        self._device, self._most = device, most
        self._queued: deque[cuda.Event] = deque()

    def mark(self, pulse: Callable[[], None] = lambda: None) -> None:
        """A piece has just been queued in the current stream: wait while there are too many. pulse: called meanwhile; it may raise."""
        if self._device.type != "cuda":
            return
        event = cuda.Event()
        event.record(cuda.current_stream(self._device))
        self._queued.append(event)
        while len(self._queued) > self._most:
            if self._queued[0].query():
                self._queued.popleft()
            else:
                pulse()
                time.sleep(POLL)
