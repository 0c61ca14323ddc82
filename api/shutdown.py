"""Streams that would never end, end when the server is told to stop: a graceful shutdown waits for every answer."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def set_on_shutdown(stopping: asyncio.Event) -> Iterator[None]:
    """Set `stopping` when a signal asks the process to end, before the server's own handler sees it.

    A server tells its application of the shutdown only after all answers are complete, which is too late for a stream. Outside the
    main thread, where no handler can be set, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stopping.set)
        theirs = before[signal.Signals(number)]
        if callable(theirs):
            theirs(number, frame)

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
