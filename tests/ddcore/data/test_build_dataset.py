"""The dataset step: files, determinism, downloads from a server of our own."""

import errno
import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

from ddcore.data import archives, build
from ddcore.data.build import build_dataset
from ddcore.data.builtins import BUILTINS, facts
from ddcore.data.images import load_dataset
from ddcore.errors import DdcoreError, Stopped
from ddcore.events import Reporter
from ddcore.task import Resources, Task


def task(folder: Path, source: dict[str, str], resources: Resources | None = None, reporter: Reporter | None = None) -> Task:
    out = folder / "out"
    out.mkdir(parents=True)
    return Task({"source": source}, {}, out, folder, reporter or Reporter(), torch.device("cpu"), resources or Resources())


def test_digits_are_what_the_table_says_and_the_same_twice(tmp_path: Path) -> None:
    for name in ("digits-train", "digits-test"):
        summary = build_dataset(task(tmp_path / name, {"builtin": name}))
        known = facts(name)
        data = load_dataset(tmp_path / name / "out")
        assert data.labels is not None
        assert torch.bincount(data.labels).tolist() == list(known.class_counts or ())
        assert (len(data), data.shape) == (known.num_images, known.image_shape)
        assert (summary["num_images"], summary["class_counts"]) == (known.num_images, list(known.class_counts or ()))
        assert (int(data.images.min()), int(data.images.max())) == (0, 255)
    build_dataset(task(tmp_path / "again", {"builtin": "digits-train"}))
    for file in ("dataset.safetensors", "preview.png"):
        assert (tmp_path / "again" / "out" / file).read_bytes() == (tmp_path / "digits-train" / "out" / file).read_bytes()
    train, test = (load_dataset(tmp_path / name / "out").images.flatten(1).tolist() for name in ("digits-train", "digits-test"))
    assert not set(map(tuple, train)) & set(map(tuple, test))


def test_an_archive_without_labels(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for i in range(3):
            stream = io.BytesIO()
            Image.new("RGB", (10, 6), (i, 2 * i, 3 * i)).save(stream, "PNG")
            file.writestr(f"{i}.png", stream.getvalue())
    summary = build_dataset(task(tmp_path / "a", {"archive": "ab12"}, Resources(archives={"ab12": tmp_path / "x.zip"})))
    assert summary == {"num_images": 3, "image_shape": [3, 6, 10], "classes": [], "class_counts": None}
    assert set(load_file(tmp_path / "a" / "out" / "dataset.safetensors")) == {"images"}
    data = load_dataset(tmp_path / "a" / "out" / "dataset.safetensors")
    assert (data.labels, data.classes) == (None, ())
    assert data.images[:, :, 0, 0].tolist() == [[0, 0, 0], [1, 2, 3], [2, 4, 6]]
    preview = np.asarray(Image.open(tmp_path / "a" / "out" / "preview.png"))
    assert preview.shape == (2 * 6 * 5, 2 * 10 * 5, 3)  # two rows and columns of cells enlarged five-fold
    assert preview[0, 10 * 5].tolist() == [1, 2, 3]
    with pytest.raises(DdcoreError, match="not at hand"):
        build_dataset(task(tmp_path / "b", {"archive": "cd34"}))


def test_a_long_reading_can_be_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.new("L", (8, 8), i).save(folder / f"{i}.png")
    asked = iter([False, False, False, True])
    with pytest.raises(Stopped):
        build_dataset(task(tmp_path / "a", {"folder": str(folder)}, reporter=Reporter(should_stop=lambda: next(asked))))


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_a_large_archive_is_read_on_from_where_it_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    folder, draw = tmp_path / "images", np.random.default_rng(0)
    for i in range(9):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "ab"[i % 2] / f"{i}.png")
    source = {"folder": str(folder)}
    summary = build_dataset(task(tmp_path / "whole", source))
    monkeypatch.setattr(build, "LARGE", 0)
    decoded: list[str] = []
    decode = archives._decode

    def counted(name: str, *more: Any) -> Any:
        decoded.append(name)
        return decode(name, *more)

    monkeypatch.setattr(archives, "_decode", counted)

    def attempt(looks: int) -> dict[str, Any]:
        """Ends at the given look at whether to stop, which comes after each header and after each image."""
        calls = iter(range(1, 1000))

        def look() -> bool:
            if next(calls) < looks:
                return False
            if killed:
                raise KeyboardInterrupt
            return True

        shutil.rmtree(tmp_path / "parts" / "out", ignore_errors=True)
        return build_dataset(task(tmp_path / "parts", source, reporter=Reporter(should_stop=look, checkpoint_seconds=0.0)))

    for looks in (5, 9 + 4, 9 + 1, 3, 9 + 3):  # in headers, after four images, one, in headers, and three
        with pytest.raises(KeyboardInterrupt if killed else Stopped):
            attempt(looks)
    assert attempt(1000) == summary
    # Who is killed after an image has not noted it down yet.
    assert len(decoded) == (9 + 3 if killed else 9)
    for name in ("dataset.safetensors", "preview.png"):
        assert (tmp_path / "parts" / "out" / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes()


def test_a_disk_without_room_for_the_pixels_is_an_error_at_once_and_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8), 1).save(tmp_path / "images" / "0.png")
    monkeypatch.setattr(build, "LARGE", 0)

    def full(file: int, first: int, size: int) -> None:
        assert (first, size) == (0, 64)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        build_dataset(task(tmp_path / "a", {"folder": str(tmp_path / "images")}))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]


def test_another_archive_is_not_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "LARGE", 0)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.new("L", (8, 8), i).save(folder / f"{i}.png")
    asked = iter([False] * 6 + [True])
    with pytest.raises(Stopped):
        build_dataset(task(tmp_path / "a", {"folder": str(folder)}, reporter=Reporter(should_stop=lambda: next(asked))))
    (folder / "0.png").rename(folder / "9.png")
    shutil.rmtree(tmp_path / "a" / "out")
    build_dataset(task(tmp_path / "a", {"folder": str(folder)}))
    assert load_dataset(tmp_path / "a" / "out").images[:, 0, 0, 0].tolist() == [1, 2, 3, 0]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    root = tmp_path / "www"
    root.mkdir()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", root
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def cifar_archive(path: Path) -> tuple[list[list[str]], dict[str, str], np.ndarray]:
    """A CIFAR-10 archive of two images in the published layout; its file list, meta entry and pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), np.uint8)
    files = {
        "data_batch_1": pickle.dumps({"data": pixels, "labels": [1, 0]}),
        "batches.meta": pickle.dumps({"label_names": ["plane", "car"]}),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    sums = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    return [["data_batch_1", sums["data_batch_1"]]], meta, pixels


def test_downloads_are_verified_and_kept(tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    url, root = server
    train_list, meta, pixels = cifar_archive(root / "cifar.tar.gz")
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "url", f"{url}/cifar.tar.gz")
    monkeypatch.setattr(cifar, "train_list", train_list)
    monkeypatch.setattr(cifar, "test_list", [])
    monkeypatch.setattr(cifar, "meta", meta)
    monkeypatch.setattr(cifar, "tgz_md5", "0" * 32)
    kept = Resources(downloads=tmp_path / "downloads")
    with pytest.raises(DdcoreError, match="CIFAR-10 could not be fetched or verified") as caught:
        build_dataset(task(tmp_path / "bad", {"builtin": "cifar10-train"}, kept))
    assert caught.value.code == "download_failed"
    assert BUILTINS["cifar10-train"].homepage in caught.value.hint

    monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5((root / "cifar.tar.gz").read_bytes()).hexdigest())
    events: list[dict[str, Any]] = []
    build_dataset(task(tmp_path / "good", {"builtin": "cifar10-train"}, kept, Reporter(sink=events.append)))
    data = load_dataset(tmp_path / "good" / "out")
    np.testing.assert_array_equal(data.images.numpy(), pixels.reshape(2, 3, 32, 32))
    assert data.labels is not None
    assert (data.labels.tolist(), data.classes) == ([1, 0], ("plane", "car"))
    assert events[0]["unit"] == "bytes"

    (root / "cifar.tar.gz").unlink()  # what was fetched once is not fetched again
    build_dataset(task(tmp_path / "again", {"builtin": "cifar10-train"}, kept))
    assert json.dumps(load_dataset(tmp_path / "again" / "out").images.tolist()) == json.dumps(data.images.tolist())

    monkeypatch.setattr(cifar, "url", f"{url}/gone.tar.gz")
    with pytest.raises(DdcoreError) as caught:
        build_dataset(task(tmp_path / "gone", {"builtin": "cifar10-train"}, Resources(downloads=tmp_path / "empty")))
    assert caught.value.code == "download_failed"
    assert "404" in caught.value.detail


class Pictures:
    """Stands in for a torchvision set of images of varying size."""

    classes = ("rose", "daisy")

    def __init__(self, root: Path, download: bool, split: str) -> None:
        tall = Image.fromarray(np.repeat(np.arange(200, dtype=np.uint8)[:, None], 100, 1))
        self.items = [(tall.convert("RGB"), 1), (Image.new("CMYK", (30, 70)), 0)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return self.items[i]


def test_sets_of_varying_size_are_resized_and_cropped_to_the_centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "Flowers102", Pictures)
    build_dataset(task(tmp_path / "a", {"builtin": "flowers102-train"}, Resources(downloads=tmp_path / "d")))
    data = load_dataset(tmp_path / "a" / "out")
    assert data.labels is not None
    assert (data.shape, data.labels.tolist(), data.classes) == ((3, 64, 64), [1, 0], ("rose", "daisy"))
    assert 48 <= int(data.images[0, 0, 0, 0]) <= 54  # the first quarter of 200 rows is cut off
    assert 146 <= int(data.images[0, 0, -1, 0]) <= 152
