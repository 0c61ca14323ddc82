"""Files are there whole or not at all, in a folder and on an S3-compatible server alike."""

import errno
import hashlib
import io
import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import obstore
import pytest

from jobs import object_store
from jobs.errors import Damaged, NotFound, StoreAway, StoreFull, StoreUnusable
from jobs.object_store import PART, RETRY, ObjectStore
from jobs.settings import Settings
from jobs.store import PIECE, FolderStore, Store, open_store
from tests.jobs.harness import at_once, harm
from tests.object_server import ObjectServer

AT_ONCE = 2  # requests, so that a file which takes more is not so large
EARLIER, LATER = datetime(2001, 1, 1, tzinfo=UTC), datetime(2101, 1, 1, tzinfo=UTC)


@dataclass
class Kept:
    """A store, and what lies in it."""

    store: Store
    settings: Settings
    server: ObjectServer | None

    def names(self) -> list[str]:
        if self.server is not None:
            return list(self.server.objects(self.settings))
        return [path.name for path in Path(self.settings.store).rglob("*") if path.is_file()]


@pytest.fixture(params=["folder", "s3"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    server: ObjectServer | None = request.getfixturevalue("object_server") if request.param == "s3" else None
    settings = Settings(home=tmp_path / "home") if server is None else server.settings(tmp_path / "home")
    return Kept(open_store(settings), settings, server)


@pytest.fixture
def store(kept: Kept) -> Store:
    return kept.store


@pytest.fixture
def bucket(object_server: ObjectServer, tmp_path: Path) -> Kept:
    settings = object_server.settings(tmp_path / "home")
    return Kept(open_store(settings), settings, object_server)


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
    assert store.read(blob.sha256) == content


@pytest.mark.parametrize("size", [0, 1, AT_ONCE * PART + PART + 17])
def test_a_file_of_any_size_comes_back_whole_and_in_part_with_signs_of_life(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(object_store, "AT_ONCE", AT_ONCE)
    ticks: list[int] = []
    store = open_store(kept.settings, lambda: ticks.append(1))
    content = os.urandom(size)
    blob = store.put(_file(tmp_path, content))
    assert len(ticks) >= size // PIECE
    ticks.clear()
    store.place(blob.sha256, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == content
    assert len(ticks) >= size // PART
    for start, length in ((0, 8), (size // 2, size), (PART - 3, 6), (size - 1 if size else 0, 1)):
        assert b"".join(store.pieces(blob.sha256, start, length)) == content[start : start + length]


def test_the_same_bytes_at_once_are_one_file_and_leave_nothing_aside(kept: Kept, tmp_path: Path) -> None:
    source = _file(tmp_path, b"x" * 1000)
    blobs = at_once([lambda: kept.store.put(source)] * 4)
    assert len(set(blobs)) == 1
    assert kept.names() == [blobs[0].sha256]


def test_a_truncated_file_is_replaced(kept: Kept, tmp_path: Path) -> None:
    source = _file(tmp_path, b"whole")
    blob = kept.store.put(source)
    harm(kept.store, blob.sha256, b"who")
    assert not kept.store.verify(blob.sha256)
    kept.store.put(source)
    assert kept.store.verify(blob.sha256)


def test_a_damaged_file_is_set_aside_and_may_be_put_again(kept: Kept, tmp_path: Path) -> None:
    source = _file(tmp_path, b"whole")
    blob = kept.store.put(source)
    assert not kept.store.set_aside(blob.sha256)
    assert kept.store.verify(blob.sha256), "it was whole"
    harm(kept.store, blob.sha256, b"whale")
    before = kept.store.leavings(LATER)
    assert [kept.store.set_aside(blob.sha256) for _ in range(2)] == [True, False]
    assert not kept.store.exists(blob.sha256)
    (left,) = kept.store.leavings(LATER)
    assert (before, left.size) == ([], 5)
    assert kept.store.leavings(EARLIER) == []
    kept.store.put(source)
    kept.store.clear([left])
    assert kept.names() == [blob.sha256]
    assert kept.store.verify(blob.sha256)


def test_a_folder_takes_bytes_that_come_again_for_those_that_it_has(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "blobs")
    source = _file(tmp_path, b"whole")
    blob = store.put(source)
    harm(store, blob.sha256, b"whale")
    store.put(source)
    assert store.verify(blob.sha256)


def test_what_somebody_else_put_there_is_not_listed(kept: Kept, tmp_path: Path) -> None:
    blob = kept.store.put(_file(tmp_path, b"ours"))
    key = f"sha256/ab/{'ab' + 'Z' * 62}"  # as long as our names
    if isinstance(kept.store, ObjectStore):
        obstore.put(kept.store.bucket, key, b"theirs")
    elif isinstance(kept.store, FolderStore):
        (kept.store.root / key).parent.mkdir(parents=True, exist_ok=True)
        (kept.store.root / key).write_bytes(b"theirs")
    assert [one.sha256 for some in kept.store.listing() for one in some] == [blob.sha256]


def test_everything_is_listed_and_what_is_removed_is_missing(kept: Kept, tmp_path: Path) -> None:
    began = datetime.now(UTC) - timedelta(seconds=2)  # a server may count whole seconds
    blobs = [kept.store.put(_file(tmp_path, b"x" * size)) for size in range(40)]
    kept.store.check()
    listed = [one for some in kept.store.listing() for one in some]
    assert [(one.sha256, one.size) for one in listed] == sorted((one.sha256, one.size) for one in blobs)
    for after in ("0", "8", listed[0].sha256, listed[20].sha256, listed[-1].sha256):
        assert [one for some in kept.store.listing(after) for one in some] == [one for one in listed if one.sha256 > after]
    assert all(began <= one.modified <= LATER for one in listed)
    names = {one.sha256 for one in blobs}
    gone = {blobs[0].sha256, blobs[7].sha256}
    kept.store.remove(gone | {"0" * 64})
    kept.store.remove([])
    assert kept.store.missing(names | {"0" * 64}) == gone | {"0" * 64}
    assert set(kept.names()) - {".writable"} == names - gone


def test_a_damaged_file_is_not_handed_out(kept: Kept, tmp_path: Path) -> None:
    blob = kept.store.put(_file(tmp_path, b"whole"))
    harm(kept.store, blob.sha256, b"whale")
    with pytest.raises(Damaged, match=rf"{blob.sha256[:12]} is damaged"):
        kept.store.read(blob.sha256)
    with pytest.raises(Damaged):
        kept.store.place(blob.sha256, tmp_path / "work" / "x")
    assert not (tmp_path / "work" / "x").exists()


def test_a_file_that_the_disk_cannot_read_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = FolderStore(tmp_path / "blobs")
    source = _file(tmp_path, b"whole")
    blob = store.put(source)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *args: Broken())
        with pytest.raises(Damaged):
            store.read(blob.sha256)
        assert store.set_aside(blob.sha256)
    store.put(source)
    assert store.verify(blob.sha256)


def test_a_file_is_placed_read_only_and_without_touching_the_original(store: Store, tmp_path: Path) -> None:
    blob = store.put(_file(tmp_path, b"input"))
    at = tmp_path / "work" / "inputs" / "teacher.safetensors"
    store.place(blob.sha256, at)
    assert at.read_bytes() == b"input"
    assert not stat.S_IMODE(at.stat().st_mode) & 0o222, "nobody is meant to write to it"
    at.unlink()
    assert store.verify(blob.sha256)


def test_what_is_not_there_is_said_at_once(store: Store, tmp_path: Path) -> None:
    nothing = "0" * 64
    assert not store.exists(nothing)
    assert not store.verify(nothing)
    for ask in (lambda: store.size(nothing), lambda: store.place(nothing, tmp_path / "x"), lambda: store.read(nothing)):
        with pytest.raises(NotFound):
            ask()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "0" * 63 + "/"])
def test_a_name_that_is_no_sha256_is_no_file(store: Store, name: str) -> None:
    with pytest.raises(NotFound):
        store.size(name)


def test_a_usable_store_passes_its_check(store: Store) -> None:
    store.check()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    store = FolderStore(tmp_path / "blobs")
    source = _file(tmp_path, b"y" * 5000)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFull, match="no room for a file of 5,000 bytes"):
        store.put(source)
    assert not [path for path in store.root.rglob("*") if path.is_file()]


def test_a_file_that_changes_while_it_is_sent_is_not_stored(bucket: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _file(tmp_path, bytes(2 * PART))

    def digest(*args: object) -> tuple[str, int]:
        source.write_bytes(bytes(2 * PART) + b"more")
        return hashlib.sha256(bytes(2 * PART)).hexdigest(), 2 * PART

    monkeypatch.setattr(object_store, "_digest", digest)
    with pytest.raises(OSError, match="changed while it was being stored"):
        bucket.store.put(source)
    assert bucket.names() == []


def test_bytes_that_are_there_are_not_sent_again(bucket: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _file(tmp_path, b"once")
    first = bucket.store.put(source)
    monkeypatch.setattr(object_store, "_steady", lambda *args: pytest.fail("sent again"))
    assert bucket.store.put(source) == first


def test_anybody_may_fetch_a_file_by_its_address_under_its_name(bucket: Kept, tmp_path: Path) -> None:
    blob = bucket.store.put(_file(tmp_path, b"0123456789"), name='a "name".bin')
    address = bucket.store.address(blob.sha256)
    assert address is not None
    answer = httpx.get(address, headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.content) == (206, b"234")
    assert answer.headers["content-disposition"] == 'attachment; filename="a _name_.bin"'
    given = {"store_public_endpoint": "https://files.example.org", "store_url_seconds": 60}
    elsewhere = open_store(bucket.settings.model_copy(update=given))
    public = elsewhere.address(blob.sha256)
    assert public is not None
    assert public.startswith("https://files.example.org/bucket-")
    assert "X-Amz-Expires=60" in public
    assert elsewhere.read(blob.sha256) == b"0123456789"


def test_a_server_that_is_away_is_asked_again_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = RETRY["backoff"] | {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2)}
    monkeypatch.setitem(RETRY, "backoff", at_once)
    server = ObjectServer()
    server.start()
    store = open_store(server.settings(tmp_path / "home"))
    source = _file(tmp_path, b"late")
    server.stop()
    nothing = "0" * 64
    asks = (store.check, lambda: store.put(source), lambda: store.missing([nothing]))
    for ask in asks:
        with pytest.raises(StoreAway, match=r"the artifact store cannot be used just now: .* after 4 retries"):
            ask()


def test_a_bucket_that_is_not_there_fails_the_check(object_server: ObjectServer, tmp_path: Path) -> None:
    settings = object_server.settings(tmp_path).model_copy(update={"store": "s3://not-there"})
    with pytest.raises(StoreAway, match="there is no such bucket"):
        open_store(settings).check()


def test_a_server_without_room_is_a_full_store(bucket: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **named: object) -> None:
        raise object_store.BaseError("status code: 507: <Code>XMinioStorageFull</Code>")

    monkeypatch.setattr("obstore.put", full)
    with pytest.raises(StoreFull, match="no room for a file of 7 bytes"):
        bucket.store.put(_file(tmp_path, b"content"))


def test_the_library_is_needed_for_s3_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> None:
        raise ModuleNotFoundError("No module named 'obstore'", name="obstore")

    monkeypatch.setattr("importlib.import_module", without)
    assert isinstance(open_store(Settings(home=tmp_path)), FolderStore)
    with pytest.raises(StoreUnusable, match="obstore is not installed") as caught:
        open_store(Settings(home=tmp_path, store="s3://bucket"))
    assert "potstill[s3]" in caught.value.hint


def test_settings_choose_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_STORE", "s3://bucket/a/b")
    assert isinstance(open_store(Settings(home=tmp_path)), ObjectStore)
    monkeypatch.setenv("POTSTILL_STORE", str(tmp_path / "files"))
    folder = open_store(Settings(home=tmp_path, store_reserve_bytes=5, store_quota_bytes=6))
    assert isinstance(folder, FolderStore)
    assert (folder.root, folder.reserve, folder.quota) == (tmp_path / "files", 5, 6)
    with pytest.raises(ValueError, match="names no bucket"):
        Settings(home=tmp_path, store="s3:///prefix")
    with pytest.raises(ValueError, match="belong together"):
        Settings(home=tmp_path, store_access_key_id="only one")
    assert "hidden" not in repr(Settings(home=tmp_path, store_access_key_id="a", store_secret_access_key="hidden"))  # type: ignore[arg-type]
