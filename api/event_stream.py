"""Server-sent events of one job: everything since an event id, then what happens, until the job has ended."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

POLL_SECONDS = 0.5
KEEPALIVE_SECONDS = 15.0


@dataclass(frozen=True)
class Look:
    """What one short transaction saw. events: (id, type, body), oldest first; now: state and progress."""

    events: list[tuple[int, str, dict[str, Any]]]
    now: dict[str, Any]
    ended: bool


async def stream(look: Callable[[int], Look], after: int, pollers: CapacityLimiter, stopping: asyncio.Event) -> AsyncIterator[bytes]:
    """Poll `look(after)` in one of the threads that `pollers` grants, and yield server-sent events.

    Recorded events carry their id, for Last-Event-ID; `progress` carries none, since the next one replaces it. Ends after `end`, or
    without one when the service stops: the client then comes back with its Last-Event-ID.
    """
    shown: dict[str, Any] | None = None
    said = time.monotonic()
    while not stopping.is_set():
        seen = await to_thread.run_sync(look, after, limiter=pollers)
        for number, kind, body in seen.events:
            after = number
            yield format_sse_event(data_str=json.dumps(body), event=kind, id=str(number))
        if seen.now != shown:
            shown = seen.now
            yield format_sse_event(data_str=json.dumps(shown), event="progress")
            said = time.monotonic()
        if seen.ended and not seen.events:
            yield format_sse_event(data_str=json.dumps(shown), event="end")
            return
        if time.monotonic() - said > KEEPALIVE_SECONDS:
            said = time.monotonic()
            yield KEEPALIVE_COMMENT
        if not seen.events:
            with anyio.move_on_after(POLL_SECONDS):
                await stopping.wait()
