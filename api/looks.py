"""Looks at jobs, for all who ask at about the same time together."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from api.pace import Pace
from jobs import database, views
from jobs.bodies import JobView
from jobs.errors import NotFound
from jobs.graph import JOB_ENDS
from jobs.recent import Recent

MOST = 100  # jobs in one look

log = logging.getLogger("potstill.api")


@dataclass(frozen=True)
class Seen:
    """A job as of a moment after it was asked for. again: seconds after which to ask once more; None if it has ended."""

    job: JobView
    again: float | None


@dataclass(frozen=True)
class _Read:
    """What a look found of one job, or why it found nothing, and the job's share of the seconds that the look took."""

    found: JobView | Exception
    took: float


class Looks:
    """Reads jobs in one thread: while it reads, those who come wait, and are then read for together.

    So a crowd costs the database and this process hardly more than one reader does, nobody waits for longer than two looks take, and
    what is the same for all is asked for once.
    """

    def __init__(self, make: sessionmaker[Session], pollers: CapacityLimiter, pace: Pace, recent: Recent) -> None:
        self.pace = pace
        self._make, self._pollers, self._recent = make, pollers, recent
        self._asked: dict[str, asyncio.Future[_Read]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._own_thread = CapacityLimiter(1)
        self._reading = self._renewing = False

    async def job(self, job_id: str) -> Seen:
        """The job as it is now. Raises `NotFound`."""
        if job_id not in self._asked:
            self._asked[job_id] = asyncio.get_running_loop().create_future()
        asked = self._asked[job_id]
        if not self._reading:
            self._reading = True
            self._start(self._read())
        read = await asyncio.shield(asked)  # others may wait for it too
        if isinstance(read.found, Exception):
            raise read.found
        return Seen(read.found, None if read.found.state in JOB_ENDS else self.pace.again(read.took))

    async def _read(self) -> None:
        try:
            while self._asked:
                ids = list(self._asked)[:MOST]
                waiting = {job_id: self._asked.pop(job_id) for job_id in ids}
                began = time.monotonic()
                try:
                    found = await to_thread.run_sync(self._look, ids, limiter=self._own_thread)
                except Exception as error:  # there is no thread, say: those who wait are told, and those who came since are read for
                    found = dict.fromkeys(ids, error)
                took = (time.monotonic() - began) / len(ids)
                for job_id, asked in waiting.items():
                    asked.set_result(_Read(found[job_id], took))
                if self._recent.wanted and not self._renewing:
                    self._renewing = True
                    self._start(self._renew())
        finally:
            self._reading = False

    def _look(self, ids: list[str]) -> dict[str, JobView | Exception]:
        try:
            there = database.transact(self._make, lambda session: views.some(session, ids, self._recent))
        except Exception as error:
            if isinstance(error, SQLAlchemyError) or len(ids) == 1:
                return dict.fromkeys(ids, error)
            return {job_id: self._look([job_id])[job_id] for job_id in ids}  # one that cannot be told must not hide the others
        return {job_id: there.get(job_id) or NotFound("job", job_id) for job_id in ids}

    async def _renew(self) -> None:
        try:
            await to_thread.run_sync(database.transact, self._make, self._recent.renew, limiter=self._pollers)
        except SQLAlchemyError as error:
            log.debug("nothing renewed: %s", error)
        finally:
            self._renewing = False

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # or nobody would hold it
        task.add_done_callback(self._tasks.discard)
