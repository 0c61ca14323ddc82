"""Questions to parts that may hang: a folder on a server that is gone, a database that accepts and never answers."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
LIMIT = 3.0  # seconds; a health check that asks several parts at once gets its answer well within its own five


class Probe(Generic[T]):
    """A function that is called in a thread of its own: never twice at once, and nobody waits for it longer than `LIMIT`.

    Those who ask while it runs get the same answer. A thread that hangs is left alone, and does not keep the process from ending.
    """

    def __init__(self, act: Callable[[], T]) -> None:
        self._act = act
        self._pending: Future[T] | None = None

    async def ask(self) -> T:
        """What the function gives or raises; `TimeoutError` if it takes too long."""
        if self._pending is None or self._pending.done():
            self._pending = Future()
            threading.Thread(target=self._run, args=(self._pending,), name="probe", daemon=True).start()
        answer = asyncio.wrap_future(self._pending)
        done, _ = await asyncio.wait({answer}, timeout=LIMIT)
        if not done:
            answer.add_done_callback(lambda late: late.cancelled() or late.exception())  # asyncio complains of errors that nobody saw
            raise TimeoutError(f"no answer within {LIMIT:g} s")
        return answer.result()

    def _run(self, pending: "Future[T]") -> None:
        try:
            result = self._act()
        except BaseException as error:
            pending.set_exception(error)
        else:
            pending.set_result(result)
