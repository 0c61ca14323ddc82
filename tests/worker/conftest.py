import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from jobs import catalogue, database, migrate
from jobs.database import sessions, transact
from jobs.settings import Settings
from tests.worker.service import RedisServer


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real redis-server on a private socket, for every test of this folder."""
    folder = Path(tempfile.mkdtemp(prefix="potstill-redis-"))  # a socket's path must be short
    server = RedisServer(folder / "s")
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


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
