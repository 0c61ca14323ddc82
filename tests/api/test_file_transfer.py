"""Downloads: ranges, tags, HEAD; uploads: datasets and checkpoints."""

import errno
import io
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from api.app import create_app
from jobs.settings import Settings
from tests.api.fakes import FakeWorker, Refused

File = tuple[TestClient, str, bytes, str]


@pytest.fixture
def file(gallery: tuple[TestClient, dict[str, Any]]) -> File:
    """A client, and address, bytes and ETag of one artifact."""
    client, distilled = gallery
    found = client.get(distilled["links"]["artifacts"]).json()["data"]
    one = next(a for a in found if a["name"] == "synthetic.pt")
    whole = client.get(one["links"]["content"])
    assert len(whole.content) == one["size"] > 40
    return client, one["links"]["content"], whole.content, f'"sha256:{one["sha256"]}"'


def test_whole_file(file: File) -> None:
    client, path, content, etag = file
    got, head = client.get(path), client.head(path)
    assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
    assert got.headers["etag"] == etag
    assert got.headers["content-length"] == str(len(content))
    assert got.headers["content-disposition"] == 'attachment; filename="synthetic.pt"'
    assert got.headers["accept-ranges"] == "bytes"
    same = {"etag", "content-length", "content-type", "content-disposition", "accept-ranges", "last-modified", "cache-control"}
    assert {name: head.headers[name] for name in same} == {name: got.headers[name] for name in same}


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        ("bytes=0-0", 206, 0, 0),
        ("bytes=5-9", 206, 5, 9),
        ("bytes=5-", 206, 5, None),
        ("bytes=-4", 206, -4, None),
        ("bytes=-100000", 206, 0, None),
        ("bytes=5-100000", 206, 5, None),
        ("bytes=9-5", 200, 0, None),
        ("bytes=x-y", 200, 0, None),
        ("bytes=-", 200, 0, None),
        ("bytes=" + "9" * 30 + "-", 200, 0, None),
        ("pages=1-2", 200, 0, None),
        ("bytes=0-3,100000-", 200, 0, None),
    ],
)
def test_ranges(file: File, asked: str, status: int, first: int, last: int | None) -> None:
    client, path, content, etag = file
    answer = client.get(path, headers={"Range": asked})
    wanted = content[first:] if last is None else content[first : last + 1]
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (status, wanted, etag)
    assert answer.headers["content-length"] == str(len(wanted))
    if status == 206:
        begin = first % len(content) if asked != "bytes=-100000" else 0
        assert answer.headers["content-range"] == f"bytes {begin}-{begin + len(wanted) - 1}/{len(content)}"
    assert client.head(path, headers={"Range": asked}).headers["content-length"] == str(len(content))


def test_several_ranges(file: File) -> None:
    client, path, content, _ = file
    answer = client.get(path, headers={"Range": "bytes=0-3,10-12"})
    assert answer.status_code == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    assert content[0:4] in answer.content
    assert content[10:13] in answer.content
    assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize("asked", ["bytes=100000-", "bytes=-0", "bytes=100000-100001,200000-"])
def test_range_outside(refused: Refused, file: File, asked: str) -> None:
    client, path, content, _ = file
    answer = client.get(path, headers={"Range": asked})
    refused(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(content)}"


def test_conditions(file: File) -> None:
    client, path, content, etag = file
    for tag in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        kept = client.get(path, headers={"If-None-Match": tag})
        assert (kept.status_code, kept.content, kept.headers["etag"]) == (304, b"", etag)
    assert client.head(path, headers={"If-None-Match": etag}).status_code == 304
    assert client.get(path, headers={"If-None-Match": '"other"'}).content == content
    part = {"Range": "bytes=0-3"}
    assert client.get(path, headers={**part, "If-Range": etag}).status_code == 206
    assert client.get(path, headers={**part, "If-Range": '"other"'}).content == content
    assert client.get(path, headers={"Range": "bytes=100000-", "If-Range": '"other"'}).status_code == 200


def test_pictures_are_shown_and_scripts_in_them_stay_dead(gallery: tuple[TestClient, dict[str, Any]]) -> None:
    client, distilled = gallery
    (plot,) = client.get(distilled["links"]["plots"]).json()["data"]
    assert plot["name"] == "losses"
    for form, media in (("png", "image/png"), ("svg", "image/svg+xml"), ("json", "application/json")):
        answer = client.get(plot["links"][form])
        assert answer.headers["content-type"] == media
        assert answer.headers["content-disposition"].startswith("inline")
        assert "sandbox" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_file_that_vanished_is_refused(client: TestClient, refused: Refused, settings: Settings) -> None:
    made = client.post("/artifacts", files={"file": ("a.safetensors", checkpoint())}).json()
    (Path(settings.store) / "sha256" / made["sha256"][:2] / made["sha256"]).unlink()
    refused(client.get(made["links"]["content"]), 404, "not_found")


def zip_of(count: int = 20, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(count):
            picture = io.BytesIO()
            Image.new("RGB", (side, side), (index * 10, 0, 0)).save(picture, "PNG")
            archive.writestr(f"class{index % 2}/{index}.png", picture.getvalue())
    return buffer.getvalue()


def _leftovers(settings: Settings) -> list[str]:
    folders = (settings.home / "uploads", Path(settings.store) / "aside")
    return [str(path) for folder in folders if folder.exists() for path in folder.iterdir()]


def test_upload_of_a_dataset(client: TestClient, refused: Refused, worker: FakeWorker, settings: Settings) -> None:
    content = zip_of()
    answer = client.post("/datasets", files={"file": ("pictures.zip", content)}, data={"name": "mine"})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["location"] == made["links"]["self"]
    assert (made["name"], made["num_images"], made["num_classes"], made["image_shape"]) == ("mine", 20, 2, [3, 8, 8])
    assert client.get("/datasets/mine").json() == client.get(made["links"]["self"]).json()
    assert made["id"] in [one["id"] for one in client.get("/datasets?limit=200").json()["data"]]
    assert client.post("/datasets", files={"file": ("again.zip", content)}).json()["id"] == made["id"]
    refused(client.get(f"/datasets/{made['id']}/preview.png"), 404, "not_found")
    job = client.post("/distill", json={"preset": "smoke", "dataset": made["id"], "num_images": 4})
    assert job.status_code == 202
    worker.finish(job.json()["id"])
    preview = client.get(client.get("/datasets/mine").json()["links"]["preview"])
    assert (preview.status_code, preview.headers["content-type"]) == (200, "image/png")
    assert _leftovers(settings) == []


@pytest.mark.parametrize(
    ("files", "data", "status", "code", "field"),
    [
        ({"file": ("a.zip", b"not a zip")}, {}, 422, "bad_dataset", "file"),
        ({"file": ("a.zip", zip_of()[:-40])}, {}, 422, "bad_dataset", "file"),
        ({"file": ("a.zip", zip_of())}, {"name": "ds_mine"}, 422, "bad_dataset", "name"),
        ({"file": ("a.zip", zip_of())}, {"name": "a\tb"}, 422, "invalid_request", "name"),
        ({"file": ("a.zip", b"x" * 200_001)}, {}, 413, "too_large", None),
        ({"file": ("a.zip", b"x" * 400_000)}, {}, 413, "too_large", None),
        ({"fiel": ("a.zip", b"x")}, {}, 422, "invalid_request", "fiel"),
        ({"file": ("a.zip", zip_of())}, {"nmae": "x"}, 422, "invalid_request", "nmae"),
        ({"file": ("a.zip", zip_of())}, {"name": "x" * 5000}, 422, "invalid_request", "name"),
        ({"other": ("a.zip", b"")}, {}, 422, "invalid_request", "other"),
    ],
)
def test_refused_upload_leaves_nothing(
    client: TestClient, refused: Refused, settings: Settings, files: Any, data: Any, status: int, code: str, field: str | None
) -> None:
    problem = refused(client.post("/datasets", files=files, data=data), status, code)
    assert [error["field"] for error in problem["errors"]] == ([field] if field else [])
    assert _leftovers(settings) == []


def test_upload_that_is_no_form_or_ends_early(client: TestClient, refused: Refused, settings: Settings) -> None:
    refused(client.post("/datasets", content=zip_of()), 415, "unsupported_media_type")
    headers = {"Content-Type": "multipart/form-data; boundary=xx"}
    half = b'--xx\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n' + b"data" * 10
    refused(client.post("/datasets", content=half, headers=headers), 400, "bad_request")
    refused(client.post("/datasets", content=b"--yy\r\n", headers=headers), 400, "bad_request")

    def endless() -> Iterator[bytes]:
        yield half
        for _ in range(100):
            yield b"x" * 10_000

    refused(client.post("/datasets", content=endless(), headers=headers), 413, "too_large")
    assert _leftovers(settings) == []


def test_upload_to_a_full_disk(client: TestClient, refused: Refused, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(form: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("api.uploads._Form.flush", full)
    problem = refused(client.post("/datasets", files={"file": ("a.zip", zip_of())}), 507, "store_full")
    assert "free some disk space" in problem["detail"]
    assert _leftovers(settings) == []


def checkpoint(header: Any = None, body: bytes = b"\0" * 16) -> bytes:
    text = json.dumps(header or {"weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_upload_of_a_checkpoint(client: TestClient, settings: Settings) -> None:
    answer = client.post("/artifacts", files={"file": ("../../we ird\x7fé.safetensors", checkpoint())})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made["id"].startswith("art_")
    assert answer.headers["location"] == made["links"]["self"]
    content = client.get(made["links"]["content"])
    assert content.content == checkpoint()
    assert "/" not in content.headers["content-disposition"].partition("filename*")[0]
    assert content.headers["content-disposition"].isascii()
    assert _leftovers(settings) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95pickle",
        struct.pack("<Q", 1 << 60) + b"{}",
        checkpoint(body=b"\0" * 8),
        checkpoint({"weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 99]}}),
    ],
)
def test_bad_checkpoint(client: TestClient, refused: Refused, settings: Settings, content: bytes) -> None:
    (error,) = refused(client.post("/artifacts", files={"file": ("a.safetensors", content)}), 422, "bad_checkpoint")["errors"]
    assert (error["field"], error["given"]) == ("file", "a.safetensors")
    assert _leftovers(settings) == []


def test_what_does_not_fit_into_the_quota_is_refused(refused: Refused, settings: Settings) -> None:
    small = settings.model_copy(update={"store_quota_bytes": 50})
    with TestClient(create_app(small), raise_server_exceptions=False) as client:
        for answer in (
            client.post("/datasets", files={"file": ("a.zip", zip_of())}),
            client.post("/artifacts", files={"file": ("a.safetensors", checkpoint())}),
            client.post("/distill", json={"preset": "smoke"}),
        ):
            assert "of the 50 that it may" in refused(answer, 507, "store_full")["detail"]
        assert client.get("/jobs").json()["data"] == []
        assert client.post("/distill?dry_run=true", json={"preset": "smoke"}).json()["disk_bytes"] > 50
    assert _leftovers(settings) == []
    assert not [path for path in Path(settings.store).rglob("*") if path.is_file()]
