from pathlib import Path

import pytest

from jobs.store import FolderStore, Store, open_store
from tests.conftest import Database
from tests.jobs.harness import World


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    return World(database, FolderStore(tmp_path / "blobs"), tmp_path)


@pytest.fixture(params=["folder", "s3"])
def anywhere(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> World:
    """A world with a store of either sort."""
    store: Store = FolderStore(tmp_path / "blobs")
    if request.param == "s3":
        store = open_store(request.getfixturevalue("object_server").settings(tmp_path / "home"))
    return World(database, store, tmp_path)  # type: ignore[arg-type]
