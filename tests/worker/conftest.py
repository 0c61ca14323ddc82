import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from jobs import catalogue
from jobs.database import sessions, transact
from jobs.models import Step
from jobs.settings import Settings
from jobs.store import open_store
from tests.worker.service import RedisServer, archive


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
def step_id(engine: Engine, settings: Settings, tmp_path: Path) -> str:
    """A step that is ready: an upload that the catalogue wants read."""
    store = open_store(settings)
    upload = catalogue.read_upload(store, archive(tmp_path / "a.zip"))
    dataset = transact(sessions(engine), lambda s: catalogue.add_upload(s, store, upload, "mine"))
    with sessions(engine).begin() as session:
        return session.scalars(select(Step.id).where(Step.key == dataset.step_key)).one()
