"""Files that lie on an S3-compatible server: downloads go past the API, and everything else is answered as ever."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.settings import Settings
from jobs.store import open_store
from potstill.download import Target, fetch
from tests.api.fakes import FakeWorker, Refused, distil
from tests.api.test_file_transfer import checkpoint
from tests.object_server import ObjectServer


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, sqlite_file: Path, object_server: ObjectServer) -> Settings:
    home = tmp_path_factory.mktemp("afar") / "home"
    home.mkdir()
    shutil.copy(sqlite_file, home / "potstill.db")
    return object_server.settings(home, redis_url="redis://127.0.0.1:1/0")


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture(scope="module")
def distilled(client: TestClient, settings: Settings) -> dict[str, Any]:
    worker = FakeWorker(settings)
    done = distil(client, worker)
    worker.dispose()
    return done


@pytest.fixture
def file(client: TestClient, distilled: dict[str, Any]) -> tuple[str, bytes, str]:
    """Address, bytes and ETag of one download."""
    one = next(a for a in client.get(distilled["links"]["artifacts"]).json()["data"] if a["name"] == "synthetic.pt")
    content = b"synthetic.pt of export" * 3
    assert one["sha256"] == hashlib.sha256(content).hexdigest()
    return one["links"]["content"], content, f'"sha256:{one["sha256"]}"'


def test_a_download_goes_to_the_server_that_keeps_the_file(client: TestClient, file: tuple[str, bytes, str]) -> None:
    path, content, etag = file
    answer = client.get(path)
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (307, b"", etag)
    assert answer.headers["cache-control"] == "no-store", "the address does not hold for ever"
    assert httpx.get(answer.headers["location"]).content == content
    part = client.get(path, headers={"Range": "bytes=5-9"})
    there = httpx.get(part.headers["location"], headers={"Range": "bytes=5-9"})
    assert (part.status_code, there.status_code, there.content) == (307, 206, content[5:10])


def test_a_synthetic_set_is_downloaded_the_same_way(client: TestClient, distilled: dict[str, Any], file: tuple[str, bytes, str]) -> None:
    (one,) = client.get("/synthetic-sets").json()["data"]
    answer = client.get(one["links"]["pt"])
    assert (answer.status_code, httpx.get(answer.headers["location"]).content) == (307, file[1])
    assert client.head(one["links"]["pt"]).headers["content-length"] == str(len(file[1]))


def test_head_and_conditions_are_answered_here(client: TestClient, refused: Refused, file: tuple[str, bytes, str]) -> None:
    path, content, etag = file
    head = client.head(path)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", etag)
    assert (head.headers["content-length"], head.headers["accept-ranges"]) == (str(len(content)), "bytes")
    assert head.headers["content-disposition"] == 'attachment; filename="synthetic.pt"'
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 304
    outside = client.get(path, headers={"Range": "bytes=100000-"})
    refused(outside, 416, "range_not_satisfiable")


@pytest.mark.parametrize(
    ("asked", "first", "last"), [("bytes=5-9", 5, 9), ("bytes=60-", 60, 65), ("bytes=-4", 62, 65), ("bytes=0-999", 0, 65)]
)
def test_the_rest_of_a_download_that_names_our_tag_comes_from_here(
    client: TestClient, file: tuple[str, bytes, str], asked: str, first: int, last: int
) -> None:
    path, content, etag = file
    answer = client.get(path, headers={"Range": asked, "If-Range": etag})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (206, content[first : last + 1], etag)
    assert answer.headers["content-range"] == f"bytes {first}-{last}/66"
    several = client.get(path, headers={"Range": "bytes=0-3,10-12", "If-Range": etag})
    assert (several.status_code, several.content) == (200, content)


def test_what_a_browser_shows_comes_from_here_with_its_guards(client: TestClient, distilled: dict[str, Any]) -> None:
    (plot,) = client.get(distilled["links"]["plots"]).json()["data"]
    answer = client.get(plot["links"]["svg"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
    assert answer.content.startswith(b"losses.svg of")
    assert answer.headers["content-length"] == str(len(answer.content))
    assert "sandbox" in answer.headers["content-security-policy"]


def test_our_client_follows_and_verifies(client: TestClient, settings: Settings, file: tuple[str, bytes, str], tmp_path: Path) -> None:
    path, content, etag = file

    def answer(request: httpx.Request) -> httpx.Response:
        """The service, or the server that it sends to."""
        ask = httpx.request if request.url.host == "127.0.0.1" else client.request
        got = ask(request.method, str(request.url), headers=dict(request.headers))
        return httpx.Response(got.status_code, headers=got.headers, content=got.content)

    http = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://testserver")
    target = Target(tmp_path / "set.pt")
    assert fetch(http, path, target, lambda done, total: None).read_bytes() == content
    target.part.write_bytes(content[:20])
    target.tag.write_text(etag)
    assert fetch(http, path, target, lambda done, total: None).read_bytes() == content
    target.part.write_bytes(b"x" * 20)
    target.tag.write_text(etag)
    with pytest.raises(Exception, match="is damaged"):
        fetch(http, path, target, lambda done, total: None)


def test_a_checkpoint_is_kept_there_and_judged_by_its_header(client: TestClient, settings: Settings) -> None:
    made = client.post("/artifacts", files={"file": ("a.safetensors", checkpoint())}).json()
    assert open_store(settings).read(made["sha256"]) == checkpoint()
    teacher = {"ssl": "given", "checkpoint": made["id"]}
    answer = client.post("/distill", json={"preset": "smoke", "teacher": teacher})
    assert answer.status_code == 422, answer.text
    assert "does not fit backbone" in answer.text


def test_a_server_that_is_away_is_no_fault_of_the_caller(
    refused: Refused, tmp_path: Path, sqlite_file: Path, distilled: dict[str, Any], settings: Settings
) -> None:
    own = ObjectServer()
    own.start()
    home = tmp_path / "home"
    shutil.copytree(settings.home, home)
    lost = own.settings(home, redis_url="redis://127.0.0.1:1/0")
    own.stop()
    with TestClient(create_app(lost), raise_server_exceptions=False) as client:
        path = client.get(distilled["links"]["artifacts"]).json()["data"][0]["links"]["content"]
        answer = client.get(path)
        refused(answer, 503, "not_ready")
        assert answer.headers["retry-after"] == "5"
        problem = refused(client.get("/readyz"), 503, "not_ready")
        assert "store" in [error["field"] for error in problem["errors"]]
