"""Engines, sessions and transactions, the same on SQLite and PostgreSQL.

On SQLite a writer begins with BEGIN IMMEDIATE, so there is one at a time. On PostgreSQL, whoever changes the graph of jobs and steps
takes one advisory lock first (`lock_graph`): such changes are short and happen one after the other on both, which makes "the last
step of a job", "needed by no other job" and "at most one live step of a key" plain questions. Heartbeats, progress, metrics and
reads do not wait for it.
"""

import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from jobs.errors import ReadOnly
from jobs.settings import Settings

T = TypeVar("T")

GRAPH_LOCK = 7_221_806_542_017
BUSY_SECONDS = 30  # a writer waits so long for another one
REPEATS = 5
# libpq's, in seconds but for the last: a server that vanished without a word, or a network that swallows all, is an error, not a silence.
_WATCHFUL = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
_IMPATIENT = {"connect_timeout": "3", "keepalives_idle": "5", "keepalives_interval": "2", "keepalives_count": "3"}  # libpq's, in seconds


def connect(settings: Settings, **options: Any) -> Engine:
    """An engine on the settings' database. Make it in the process that uses it: connections do not survive a fork.

    What the URL says of timeouts and keepalives holds before our own. options: of its pool of connections to PostgreSQL, if not the usual.
    """
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        if url.database and url.database != ":memory:":
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine, "connect", _open_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    url = url.set(drivername="postgresql+psycopg").update_query_dict(_WATCHFUL | url.query)
    pool: dict[str, Any] = {"pool_pre_ping": True, "pool_size": settings.database_pool, "max_overflow": 0} | options
    engine = create_engine(url, **pool)
    event.listen(engine, "connect", _open_postgresql)
    return engine


def connect_to_watch(settings: Settings) -> Engine:
    """An engine of few connections for who only looks, and is to be told soon if the server is gone."""
    url = make_url(settings.database_url)
    if url.get_backend_name() != "sqlite":
        url = url.update_query_dict(_IMPATIENT)
    return connect(settings.model_copy(update={"database_url": url.render_as_string(hide_password=False), "database_pool": 2}))


def _open_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN would come late, and never be IMMEDIATE
    _use_wal(connection)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _use_wal(connection: Any) -> None:
    """Switch the file to a write-ahead log. SQLite does not wait here for others who open a new file at the same time; this does."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("no_transaction", False):
        connection.exec_driver_sql("BEGIN" if options.get("reads_only", False) else "BEGIN IMMEDIATE")


def _open_postgresql(connection: psycopg.Connection[Any], _record: Any) -> None:
    """A process frozen in the middle of a transaction must not hold its locks for good: the server ends it."""
    connection.execute(f"SET idle_in_transaction_session_timeout = '{BUSY_SECONDS}s'")
    connection.execute(f"SET lock_timeout = '{BUSY_SECONDS}s'")
    connection.commit()


def sessions(engine: Engine) -> sessionmaker[Session]:
    """Sessions that may write. Rows stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)


def readers(engine: Engine) -> sessionmaker[Session]:
    """Sessions that only read, and wait for nobody. All that one reads is as it was at one moment, however many statements it takes."""
    options: dict[str, Any] = {"reads_only": True}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "REPEATABLE READ"  # else a job's row and its result may be of before and after a commit
    return sessionmaker(engine.execution_options(**options), expire_on_commit=False)


def lookers(engine: Engine) -> sessionmaker[Session]:
    """Sessions for short looks: each statement sees its own moment, and nothing is sent but statements.

    A connection that broke while nobody looked is an error of the next look: use them with `transact`, which looks again.
    """
    own = {"isolation_level": "AUTOCOMMIT"} if engine.dialect.name == "postgresql" else {"no_transaction": True}
    return sessionmaker(engine.execution_options(**own), expire_on_commit=False)


def transact(make: sessionmaker[Session], work: Callable[[Session], T]) -> T:
    """Run `work` in one transaction and commit it; again, from the start, if it lost a race that repeating can win.

    A connection that breaks during the commit is not repeated: nobody knows whether the commit was done.
    """
    for repeat in range(REPEATS):
        committing = False
        try:
            with make() as session:
                result = work(session)
                committing = True
                session.commit()
                return result
        except DBAPIError as error:
            broken = error.connection_invalidated and not committing
            if repeat == REPEATS - 1 or not (broken or _lost_a_race(error)):
                raise
            time.sleep(0.02 * 2**repeat)
    raise AssertionError("unreachable")


def _lost_a_race(error: DBAPIError) -> bool:
    """A unique key that another transaction took first, a deadlock, a serialisation failure, or a lock that came too late."""
    if isinstance(error.orig, psycopg.Error):
        return error.orig.sqlstate in ("23505", "40P01", "40001", "55P03")
    return "UNIQUE constraint failed" in str(error.orig) or "database is locked" in str(error.orig)


def require_writable(engine: Engine) -> None:
    """Raises `ReadOnly` if the server takes no changes."""
    if engine.dialect.name != "postgresql":
        return
    with engine.connect() as connection:
        if connection.scalar(text("SHOW transaction_read_only")) == "on":
            raise ReadOnly("the database takes no changes: it is a standby, or set to read only", "connect to the primary")


def lock_graph(session: Session) -> None:
    """Wait until no other transaction changes jobs, steps or edges; held until this one ends. Call it before the first read."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(GRAPH_LOCK)))


def now(session: Session) -> datetime:
    """The time by the database's clock, so that leases mean the same on every machine (SQLite: this machine's)."""
    if session.get_bind().dialect.name == "postgresql":
        moment = session.scalar(select(func.clock_timestamp()))
        if not isinstance(moment, datetime):
            raise TypeError(f"clock_timestamp() gave {moment!r}")
        return moment.astimezone(UTC)
    return datetime.now(UTC)
