import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
