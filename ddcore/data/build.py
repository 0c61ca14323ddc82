"""The dataset step: a built-in name, an uploaded zip or a folder becomes one tensor file and a preview."""

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddcore.checkpoint import read_checkpoint, write_checkpoint
from ddcore.data.archives import ArchiveFacts, Pixels, read_archive
from ddcore.data.builtins import builtin
from ddcore.data.downloads import Arrays, read_builtin
from ddcore.data.images import NAME, Images
from ddcore.errors import DdcoreError, Stopped
from ddcore.task import Task

LAYOUT = "dataset 1"  # of checkpoints
LARGE = 2 << 30  # bytes of pixels that take about half a minute to read: fewer are read anew
PREVIEW = 64  # images in preview.png, evenly spaced over the set
_PREVIEW_SIDE = 48  # pixels at least; smaller images are enlarged by whole factors


def build_dataset(task: Task) -> dict[str, Any]:
    """Write dataset.safetensors and preview.png; equal sources give equal bytes.

    params: {"source": {"builtin": name} | {"archive": sha256} | {"folder": path}}. Raises `DdcoreError` bad_dataset,
    download_failed, missing_input or invalid_spec. Summary: num_images, image_shape, classes, class_counts.
    """
    images, labels, classes = _read(task.params["source"], task)
    made = Images(torch.from_numpy(images), None if labels is None else torch.from_numpy(labels), classes)
    made.save(task.out / NAME)
    Image.fromarray(_grid(images)).save(task.out / "preview.png", optimize=False)
    counts = None if labels is None else np.bincount(labels, minlength=len(classes)).tolist()
    return {"num_images": len(made), "image_shape": list(made.shape), "classes": list(classes), "class_counts": counts}


def _read(source: Mapping[str, str], task: Task) -> Arrays:
    if "builtin" in source:
        return read_builtin(builtin(source["builtin"]), task.resources.downloads, task.reporter)
    if "archive" in source:
        if source["archive"] not in task.resources.archives:
            raise DdcoreError("missing_input", f"archive {source['archive'][:12]} is not at hand", "upload the zip again")
        path = task.resources.archives[source["archive"]]
    else:
        path = Path(source["folder"])

    kept = _Kept(task)
    images, labels, classes = read_archive(path, kept.progress, begin=kept.begin)
    return images, labels, classes or ()


class _Kept:
    """The pixels of a large archive, in a file with which another attempt goes on. Headers are read again, many times faster."""

    def __init__(self, task: Task) -> None:
        self._task, self._file = task, task.work / "pixels"
        self._archive = ""
        self._pixels: np.memmap[Any, np.dtype[np.uint8]] | None = None

    def begin(self, facts: ArchiveFacts) -> Pixels:
        """The array to fill, and how many of its images an earlier attempt has filled."""
        shape = (facts.num_images, *facts.image_shape)
        if math.prod(shape) < LARGE:
            return np.empty(shape, np.uint8), 0
        done, self._archive = 0, hashlib.sha256(repr(facts).encode()).hexdigest()
        found = read_checkpoint(self._task.work, LAYOUT, self._task.reporter.note)
        if found and found[1]["archive"] == self._archive and self._file.exists():
            done = found[1]["done"]
        if not done:
            try:
                with self._file.open("wb") as file:  # all of it now: a disk that is full later would end the process by a signal
                    os.posix_fallocate(file.fileno(), 0, math.prod(shape))
            except OSError:
                self._file.unlink(missing_ok=True)  # else it would fill the disk for others
                raise
        self._pixels = np.memmap(self._file, np.uint8, "r+", shape=shape)
        return np.asarray(self._pixels), done

    def progress(self, done: int, total: int) -> None:
        """As `read_archive` calls it. Raises `Stopped` after writing a checkpoint."""
        try:
            self._task.reporter.progress(done, total, "images", "reading headers" if 2 * done <= total else "reading pixels")
        except Stopped:
            self._save(done - total // 2)
            raise
        if self._task.reporter.checkpoint_due():
            self._save(done - total // 2)

    def _save(self, done: int) -> None:
        if self._pixels is not None:
            self._pixels.flush()  # to the disk, before anything says that they are there
            write_checkpoint(self._task.work, LAYOUT, {}, {"archive": self._archive, "done": done})


def _grid(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Up to 64 of the images side by side: uint8 [rows, columns] or [rows, columns, 3]."""
    chosen = images[np.linspace(0, len(images) - 1, min(PREVIEW, len(images))).round().astype(int)]
    count, channels, height, width = chosen.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = int(np.ceil(count / columns))
    zoom = max(1, -(-_PREVIEW_SIDE // max(height, width)))
    cells = np.zeros((rows * columns, channels, height * zoom, width * zoom), np.uint8)
    cells[:count] = chosen.repeat(zoom, 2).repeat(zoom, 3)
    grid = cells.reshape(rows, columns, channels, height * zoom, width * zoom).transpose(0, 3, 1, 4, 2)
    return grid.reshape(rows * height * zoom, columns * width * zoom, channels).squeeze(-1 if channels == 1 else ())
