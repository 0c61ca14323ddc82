from pathlib import Path

import pytest

from potstill.client import Client
from potstill.errors import PotstillError
from tests.potstill.conftest import Service


def test_download_goes_on_where_the_connection_broke(service: Service, tmp_path: Path) -> None:
    service.break_after = [1_000_000, 2_000_000]
    seen: list[tuple[int, int]] = []
    with Client(service.url) as client:
        path = client.download("/file", tmp_path / "new" / "set.bin", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == service.content
    ranges = [headers.get("Range") for _, headers, _ in service.requests]
    assert ranges[0] is None
    assert len(ranges) == 3
    assert all(later is not None for later in ranges[1:])
    assert seen[-1] == (len(service.content), len(service.content))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert [p.name for p in path.parent.iterdir()] == ["set.bin"]


def test_download_of_another_process_is_taken_up(service: Service, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(service.content[:777])
    (tmp_path / "set.bin.part.etag").write_text(service.etag)
    with Client(service.url) as client:
        client.download("/file", tmp_path / "set.bin")
    assert service.requests[0][1]["Range"] == "bytes=777-"
    assert (tmp_path / "set.bin").read_bytes() == service.content


@pytest.mark.parametrize("left", [b"all of it", b"too long"])
def test_download_whose_part_is_whole_or_too_long(service: Service, tmp_path: Path, left: bytes) -> None:
    whole = service.content if left == b"all of it" else service.content + b"more"
    (tmp_path / "set.bin.part").write_bytes(whole)
    (tmp_path / "set.bin.part.etag").write_text(service.etag)
    with Client(service.url) as client:
        client.download("/file", tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == service.content


def test_download_begins_again_when_the_file_is_another(service: Service, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"x" * 777)
    (tmp_path / "set.bin.part.etag").write_text('"sha256:' + "0" * 64 + '"')
    with Client(service.url) as client:
        client.download("/file", tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == service.content


def test_damaged_download_is_refused_and_removed(service: Service, tmp_path: Path) -> None:
    service.content = b"damaged" + service.content[7:]
    with Client(service.url) as client, pytest.raises(PotstillError, match="damaged"):
        client.download("/file", tmp_path / "set.bin")
    assert list(tmp_path.iterdir()) == []


def test_download_gives_up_when_nothing_comes(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.download.time.sleep", lambda seconds: None)
    service.break_after = [0] * 100
    with Client(service.url) as client, pytest.raises(PotstillError, match="run it again"):
        client.download("/file", tmp_path / "set.bin")
    assert len(service.requests) == 5
