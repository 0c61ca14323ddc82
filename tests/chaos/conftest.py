import pytest
from sqlalchemy import Engine

from jobs.settings import Settings
from tests.conftest import Database


@pytest.fixture
def settings(database: Database) -> Settings:
    return database.settings


@pytest.fixture
def engine(database: Database) -> Engine:
    return database.engine
