"""Files are there whole or not at all."""

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from jobs.errors import NotFound, StoreFull
from jobs.store import PIECE, Store
from tests.jobs.harness import at_once


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "blobs")


def _file(folder: Path, content: bytes, name: str = "source") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_a_file_is_named_by_its_bytes(store: Store, tmp_path: Path) -> None:
    content = os.urandom(PIECE + 1000)
    blob = store.put(_file(tmp_path, content))
    assert (blob.sha256, blob.size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert store.exists(blob.sha256)
    assert store.size(blob.sha256) == len(content)
    assert store.verify(blob.sha256)
    assert not stat.S_IMODE(store.path(blob.sha256).stat().st_mode) & 0o222, "nobody is meant to write to it"


def test_the_same_bytes_at_once_are_one_file_and_leave_nothing_aside(store: Store, tmp_path: Path) -> None:
    source = _file(tmp_path, b"x" * 1000)
    blobs = at_once([lambda: store.put(source)] * 4)
    assert len(set(blobs)) == 1
    assert [path for path in store.root.rglob("*") if path.is_file()] == [store.path(blobs[0].sha256)]


def test_a_truncated_file_is_replaced(store: Store, tmp_path: Path) -> None:
    source = _file(tmp_path, b"whole")
    blob = store.put(source)
    store.path(blob.sha256).chmod(0o644)
    store.path(blob.sha256).write_bytes(b"who")
    assert not store.verify(blob.sha256)
    store.put(source)
    assert store.verify(blob.sha256)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_visible(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    source = _file(tmp_path, b"y" * 5000)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFull, match="no room for a file of 5,000 bytes"):
        store.put(source)
    assert not [path for path in store.root.rglob("*") if path.is_file()]


def test_a_file_is_placed_without_touching_the_original(store: Store, tmp_path: Path) -> None:
    blob = store.put(_file(tmp_path, b"input"))
    at = tmp_path / "work" / "inputs" / "teacher.safetensors"
    store.place(blob.sha256, at)
    assert at.read_bytes() == b"input"
    at.unlink()
    assert store.verify(blob.sha256)


def test_what_is_not_there_is_said_at_once(store: Store, tmp_path: Path) -> None:
    nothing = "0" * 64
    assert not store.exists(nothing)
    assert not store.verify(nothing)
    for ask in (lambda: store.size(nothing), lambda: store.place(nothing, tmp_path / "x")):
        with pytest.raises(NotFound):
            ask()


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "0" * 63 + "/"])
def test_a_name_that_is_no_sha256_is_no_path(store: Store, name: str) -> None:
    with pytest.raises(NotFound):
        store.path(name)
