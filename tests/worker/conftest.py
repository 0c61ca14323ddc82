import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from jobs.settings import Settings
from tests.conftest import Database
from tests.worker.service import RedisServer


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real redis-server that a test may restart."""
    folder = Path(tempfile.mkdtemp(prefix="potstill-redis-"))  # a socket's path must be short
    server = RedisServer(folder / "s")
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def settings(database: Database) -> Settings:
    return database.settings


@pytest.fixture
def engine(database: Database) -> Engine:
    return database.engine
