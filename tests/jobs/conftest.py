from pathlib import Path

import pytest

from jobs.store import FolderStore
from tests.conftest import Database
from tests.jobs.harness import World


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    return World(database, FolderStore(tmp_path / "blobs"), tmp_path)
