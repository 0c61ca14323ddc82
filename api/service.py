"""What every route needs: settings, database, store; opened when the service starts, closed when it ends."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from api.event_stream import Tail
from api.looks import Looks
from api.pace import Pace
from api.shutdown import set_on_shutdown
from jobs import catalogue, condemned, database, migrate, quota
from jobs.errors import StoreUnusable, WrongRevision
from jobs.recent import Recent
from jobs.settings import Settings
from jobs.store import Blob, Store, open_store

T = TypeVar("T")
RECENT = 1.0  # seconds for which what is the same for all readers may be remembered
POLLERS = 4  # threads that look for news on behalf of those who watch, however many they are

log = logging.getLogger("potstill.api")


@dataclass(frozen=True)
class Service:
    """One running API. read and write are for one short transaction each; nothing is held while an answer is being sent.

    look: for the threads of `pollers`, on behalf of those who watch.
    """

    settings: Settings
    engine: Engine
    read: sessionmaker[Session]
    sessions: sessionmaker[Session]
    store: Store
    look: sessionmaker[Session]
    pollers: CapacityLimiter
    stopping: asyncio.Event
    tail: Tail
    recent: Recent
    looks: Looks

    def require_room(self, needed: int) -> None:
        """Raises `NoRoom` unless a file of so many bytes fits into the store."""
        with self.read() as session:
            quota.require(session, self.store, needed)

    def write(self, work: Callable[[Session], T]) -> T:
        """Run `work` in one transaction, again if the database asks for it; who changed something here sees it at once."""
        try:
            return database.transact(self.sessions, work)
        finally:
            self.recent.forget()

    def name(self, blob: Blob, path: Path, name: str, work: Callable[[Session], T]) -> T:
        """`write`, of rows that name a file that was just stored, from `path`, and that nobody removes meanwhile."""
        held = condemned.hold(self.write, self.store, {blob.sha256: (path, name)})

        def both(session: Session) -> T:
            condemned.require(session, held)
            return work(session)

        return self.write(both)


@asynccontextmanager
async def running(app: FastAPI, settings: Settings) -> AsyncIterator[None]:
    """Open the database and the store. Raises `WrongRevision` when the schema is not the one this code needs, and `StoreUnusable`."""
    # As many requests at work as there are connections, or they would only wait for each other with a thread in hand.
    to_thread.current_default_thread_limiter().total_tokens = settings.database_pool + 4
    store = await to_thread.run_sync(_open, settings)
    engine = await to_thread.run_sync(database.connect, settings)
    look_engine = database.connect(settings, pool_size=POLLERS + 1, pool_pre_ping=False)
    try:
        await to_thread.run_sync(_check, engine)
        readers, sessions = database.readers(engine), database.sessions(engine)
        look, pollers, stopping = database.lookers(look_engine), CapacityLimiter(POLLERS), asyncio.Event()
        recent, tail = Recent(RECENT), Tail(look, pollers)
        looks = Looks(look, pollers, Pace(), recent)
        service = Service(settings, engine, readers, sessions, store, look, pollers, stopping, tail, recent, looks)
        await to_thread.run_sync(service.write, catalogue.ensure_builtins)
        app.state.service = service
        with set_on_shutdown(stopping):
            news = asyncio.create_task(tail.run(stopping))
            try:
                yield
            finally:
                stopping.set()
                await news
    finally:
        engine.dispose()
        look_engine.dispose()


def _open(settings: Settings) -> Store:
    try:
        return open_store(settings)
    except StoreUnusable as error:
        log.critical("the API does not start: %s; %s", error.detail, error.hint)
        raise


def _check(engine: Engine) -> None:
    try:
        migrate.check_revision(engine)
    except WrongRevision as error:
        log.critical("the API does not start: %s; %s", error.detail, error.hint)
        raise


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Running = Annotated[Service, Depends(_service)]
