"""Server-sent events of one job: everything since an event id, then what happens, until the job has ended."""

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from jobs.database import transact
from jobs.news import News, newest, news

NEWS_SECONDS = 0.5
KEEPALIVE_SECONDS = 15.0
AWAY_SECONDS = 3.0  # until a stream looks again whose database did not answer

log = logging.getLogger("potstill.api")


@dataclass(frozen=True)
class Look:
    """What one look saw. events: (id, type, body), oldest first; now: state and progress; more: events are left to read.

    again: seconds after which to look without news, for what is no event: progress, place.
    """

    events: list[tuple[int, str, dict[str, Any]]]
    now: dict[str, Any]
    ended: bool
    more: bool
    again: float


class Tail:
    """Reads on in the table of events for all streams together, and wakes those to whose job something happened."""

    def __init__(self, look: sessionmaker[Session], pollers: CapacityLimiter) -> None:
        self._look, self._pollers = look, pollers
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._last: int | None = None  # the event up to which it has read; None while nobody listens

    @contextmanager
    def listening(self, about: Collection[str]) -> Iterator[asyncio.Event]:
        """An event that is set whenever something has happened to one of the jobs or steps."""
        bell = asyncio.Event()
        for one in about:
            self._waiting[one].add(bell)
        try:
            yield bell
        finally:
            for one in about:
                self._waiting[one].discard(bell)
                if not self._waiting[one]:
                    del self._waiting[one]

    @property
    def listeners(self) -> int:
        """How many streams there are."""
        return len(set().union(*self._waiting.values()))

    async def run(self, stopping: asyncio.Event) -> None:
        """Read until `stopping`, which wakes all. While the database is away they look only when they would look anyway."""
        while not stopping.is_set():
            with anyio.move_on_after(NEWS_SECONDS):
                await stopping.wait()
            try:
                await self._tell()
            except SQLAlchemyError as error:
                log.debug("no news: %s", error)
        self._wake(list(self._waiting))

    async def _tell(self) -> None:
        if not self._waiting:
            self._last = None
            return
        if self._last is None:
            self._last = await to_thread.run_sync(self._newest, limiter=self._pollers)
            self._wake(list(self._waiting))  # what happened before that was told to nobody
        more = True
        while more:
            seen = await to_thread.run_sync(self._news, self._last, limiter=self._pollers)
            self._last, more = seen.last, seen.more
            self._wake(seen.about)

    def _wake(self, about: Collection[str]) -> None:
        for one in about:
            for bell in self._waiting.get(one, ()):
                bell.set()

    def _newest(self) -> int:
        return transact(self._look, newest)

    def _news(self, after: int) -> News:
        return transact(self._look, lambda session: news(session, after))


async def stream(
    look: Callable[[int, bool], Awaitable[Look]], after: int, about: Collection[str], tail: Tail, stopping: asyncio.Event
) -> AsyncIterator[bytes]:
    """Call `look(after, whether there may be new events)` now and then, and at once when there are some; yield server-sent events.

    about: ids of the job and its steps. Recorded events carry their id, for Last-Event-ID; `progress` carries none, since the next one
    replaces it. While the database is away there are no news. Ends after `end`, or without one when the service stops: the client then
    comes back with its Last-Event-ID.
    """
    shown: dict[str, Any] | None = None
    said = time.monotonic()
    with tail.listening(about) as bell:
        bell.set()  # for what there is already
        while not stopping.is_set():
            news = bell.is_set()
            bell.clear()
            try:
                seen = await look(after, news)
            except SQLAlchemyError as error:
                log.debug("a stream waits for the database: %s", error)
                bell.set()
                with anyio.move_on_after(AWAY_SECONDS):
                    await stopping.wait()
                yield KEEPALIVE_COMMENT
                continue
            for number, kind, body in seen.events:
                after = number
                yield format_sse_event(data_str=json.dumps(body), event=kind, id=str(number))
            if seen.now != shown:
                shown = seen.now
                yield format_sse_event(data_str=json.dumps(shown), event="progress")
                said = time.monotonic()
            if seen.more:
                bell.set()
                continue
            if seen.ended:
                yield format_sse_event(data_str=json.dumps(shown), event="end")
                return
            if time.monotonic() - said > KEEPALIVE_SECONDS:
                said = time.monotonic()
                yield KEEPALIVE_COMMENT
            with anyio.move_on_after(min(seen.again, KEEPALIVE_SECONDS)):
                await bell.wait()
