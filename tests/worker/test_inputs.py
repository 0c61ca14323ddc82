import os
from pathlib import Path

import httpx
import pytest

from ddcore.errors import DdcoreError
from jobs.claims import InputFile
from jobs.store import FolderStore, Store, open_store
from tests.object_server import ObjectServer
from worker.inputs import InputCache


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def put(store: Store, tmp_path: Path, name: str, text: str) -> InputFile:
    path = tmp_path / "new"
    path.write_text(text)
    blob = store.put(path)
    return InputFile(name, blob.sha256, blob.size)


def cache_of(store: Store, tmp_path: Path, limit: int = 10**9) -> InputCache:
    return InputCache(tmp_path / "inputs", store, limit)


def test_a_folder_holds_the_files_under_their_names_and_is_read_only(store: FolderStore, tmp_path: Path) -> None:
    files = [put(store, tmp_path, "a.json", "1"), put(store, tmp_path, "b.bin", "22")]
    folder = cache_of(store, tmp_path).folder(files)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a.json": "1", "b.bin": "22"}
    assert folder.stat().st_mode & 0o222 == 0
    assert all(path.stat().st_mode & 0o222 == 0 for path in folder.iterdir())


def test_equal_files_share_a_folder_and_other_names_do_not(store: FolderStore, tmp_path: Path) -> None:
    cache = cache_of(store, tmp_path)
    one = put(store, tmp_path, "a", "1")
    assert cache.folder([one]) == cache.folder([one])
    assert len(cache._locks) == 1  # the ranking of a sweep names one teacher for every variant
    assert cache.folder([one]) != cache.folder([InputFile("b", one.sha256, one.size)])


def test_the_least_recently_used_folder_goes_first_and_one_in_use_stays(store: FolderStore, tmp_path: Path) -> None:
    old, used, new = (put(store, tmp_path, "f", letter * 100) for letter in "abc")
    first = cache_of(store, tmp_path)
    folders = {file.sha256: first.folder([file]) for file in (old, used, new)}
    for age, file in ((30, old), (20, used), (10, new)):
        os.utime(folders[file.sha256], (1e9 - age, 1e9 - age))
    first.close()
    holder = cache_of(store, tmp_path)
    kept = holder.folder([used])
    os.utime(kept, (0, 0))  # in use, and yet the one used longest ago
    cache_of(store, tmp_path, limit=250).evict()
    assert [folders[f.sha256].exists() for f in (old, used, new)] == [False, True, True]
    cache_of(store, tmp_path, limit=0).evict()
    assert [folders[f.sha256].exists() for f in (used, new)] == [True, False]
    holder.limit = 0
    holder.close()
    assert not kept.exists()
    assert cache_of(store, tmp_path).folder([old]).exists()


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_a_missing_or_damaged_file_is_named_and_leaves_nothing_behind(store: FolderStore, tmp_path: Path, harm: str) -> None:
    file = put(store, tmp_path, "experts.safetensors", "12345")
    blob = store.here(file.sha256)
    blob.unlink()
    if harm == "damaged":
        blob.write_text("123")
    cache = cache_of(store, tmp_path)
    with pytest.raises(DdcoreError, match=rf"experts.safetensors .* is {harm}") as caught:
        cache.folder([file])
    assert caught.value.code == "missing_input"
    assert list(cache.root.iterdir()) == []


def test_files_of_a_server_are_fetched_once_and_again_when_damaged(object_server: ObjectServer, tmp_path: Path) -> None:
    settings = object_server.settings(tmp_path / "home")
    store = open_store(settings)
    file = put(store, tmp_path, "teacher.safetensors", "whole")
    first = cache_of(store, tmp_path)
    kept = first.folder([file]) / file.name
    first.close()
    (address,) = object_server.objects(settings).values()
    httpx.delete(address).raise_for_status()
    assert (cache_of(store, tmp_path).folder([file]) / file.name).read_text() == "whole"

    kept.chmod(0o644)
    kept.write_text("whale")
    with pytest.raises(DdcoreError, match="is gone"):
        cache_of(store, tmp_path).folder([file])
    put(store, tmp_path, "teacher.safetensors", "whole")
    holder = cache_of(store, tmp_path)
    assert (holder.folder([file]) / file.name).read_text() == "whole"
    (damaged,) = tmp_path.glob("inputs/.damaged-*")
    os.utime(damaged, (0, 0))
    holder.close()
    assert [path.name for path in (tmp_path / "inputs").iterdir()] == [kept.parent.name]


def test_one_stored_file_is_kept_like_the_others(store: FolderStore, tmp_path: Path) -> None:
    file = put(store, tmp_path, "archive.zip", "zip")
    cache = cache_of(store, tmp_path, limit=0)
    path = cache.file(file.sha256)
    assert path.read_text() == "zip"
    cache.close()
    assert not path.exists()
    with pytest.raises(DdcoreError, match="is gone"):
        cache.file("0" * 64)
