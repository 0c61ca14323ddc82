import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.settings import Settings
from tests.api.fakes import FakeWorker, Refused, distil

REDIS_NOWHERE = "redis://127.0.0.1:1/0"


def _installation(home: Path, sqlite_file: Path) -> Settings:
    home.mkdir()
    shutil.copy(sqlite_file, home / "potstill.db")
    return Settings(home=home, max_upload_bytes=200_000, redis_url=REDIS_NOWHERE)


@pytest.fixture
def settings(tmp_path: Path, sqlite_file: Path) -> Settings:
    return _installation(tmp_path / "home", sqlite_file)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def worker(settings: Settings) -> Iterator[FakeWorker]:
    worker = FakeWorker(settings)
    yield worker
    worker.dispose()


@pytest.fixture
def distilled(client: TestClient, worker: FakeWorker) -> dict[str, Any]:
    """A finished distillation, as GET /jobs/{id} shows it."""
    return distil(client, worker)


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory, sqlite_file: Path) -> Iterator[tuple[TestClient, dict[str, Any]]]:
    """A client of an installation with one finished distillation, and that job: made once, for tests that only read."""
    settings = _installation(tmp_path_factory.mktemp("gallery") / "home", sqlite_file)
    worker = FakeWorker(settings)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client, distil(client, worker)
    worker.dispose()


@pytest.fixture
def refused() -> Refused:
    """Checks that an answer is a problem of this status and code, and gives its body."""

    def check(answer: Any, status: int, code: str) -> dict[str, Any]:
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        body: dict[str, Any] = answer.json()
        assert (answer.status_code, body["status"], body["code"]) == (status, status, code), body
        assert set(body) == {"type", "title", "status", "detail", "code", "errors", "request_id"}
        assert body["request_id"] == answer.headers["x-request-id"]
        assert body["detail"]
        return body

    return check
