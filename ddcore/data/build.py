"""The dataset step: a built-in name, an uploaded zip or a folder becomes one tensor file and a preview."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddcore.data.archives import read_archive
from ddcore.data.builtins import builtin
from ddcore.data.downloads import Arrays, read_builtin
from ddcore.data.images import NAME, Images
from ddcore.errors import DdcoreError
from ddcore.task import Task

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

    def progress(done: int, total: int) -> None:
        task.reporter.progress(done, total, "images", "reading headers" if 2 * done <= total else "reading pixels")

    images, labels, classes = read_archive(path, progress)
    return images, labels, classes or ()


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
