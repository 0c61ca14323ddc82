"""Says in the database, again and again, that this worker is there."""

import logging
import threading
from functools import partial

from sqlalchemy.orm import Session, sessionmaker

from jobs import workers
from jobs.database import transact
from jobs.settings import Settings
from worker.patience import AWAY

_GOODBYE = 5.0  # seconds that a report under way may take when the worker ends
log = logging.getLogger(__name__)


class Announcer:
    """A thread of the pool child, which between two steps does nothing else. A frozen worker falls silent."""

    def __init__(self, settings: Settings, factory: sessionmaker[Session], worker: workers.Presence) -> None:
        self.settings, self.sessions, self.worker = settings, factory, worker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def leave(self) -> None:
        """Say nothing more, and be listed no longer. While the database is away the worker will be listed as lost."""
        self._stop.set()
        self._thread.join(_GOODBYE)
        try:
            transact(self.sessions, lambda s: workers.leave(s, self.worker.name))
        except AWAY as error:
            log.info("could not say goodbye: %s", (str(error).splitlines() or [type(error).__name__])[0])

    def _run(self) -> None:
        first = True
        while not self._stop.is_set():
            try:
                transact(self.sessions, partial(workers.report, worker=self.worker, alive_seconds=self.settings.lease_seconds, first=first))
                first = False
            except AWAY as error:
                log.debug("could not report: %s", error)  # the supervisor's heartbeats say it aloud
            self._stop.wait(self.settings.heartbeat_seconds)
