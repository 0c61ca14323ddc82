"""Work that cannot be asked to stop, such as a library's download, beside which the step goes on saying and asking."""

import threading
from collections.abc import Callable
from typing import TypeVar

POLL = 0.2  # seconds between two looks
T = TypeVar("T")


def beside(work: Callable[[], T], meanwhile: Callable[[], None]) -> T:
    """What `work()` returns or raises, in a thread of its own; `meanwhile()` is called a few times a second, at least once; it may raise.

    The thread is then left alone, and ends with the process at the latest: a stopped step must not wait for the network.
    """
    found: list[T] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:  # carried to the thread that waits; sorted there
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while True:
        thread.join(POLL)
        meanwhile()
        if not thread.is_alive():
            break
    if raised:
        raise raised[0]
    return found[0]
