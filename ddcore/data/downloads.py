"""Built-in data sets as arrays: bundled digits, and what torchvision fetches and verifies."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ddcore.beside import beside
from ddcore.data.builtins import Builtin
from ddcore.errors import DdcoreError
from ddcore.events import Reporter

DIGITS_TEST = 500
DIGITS_SEED = 0
_POLL = 0.2  # seconds between two looks at a lock

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64] | None, tuple[str, ...]]


def read_builtin(known: Builtin, downloads: Path, reporter: Reporter) -> Arrays:
    """Images uint8 [n, c, h, w], labels int64 [n] or None, class names. Raises `DdcoreError` download_failed."""
    if known.loader == "digits":
        return _digits(known.arguments["train"])
    folder = downloads / known.loader.lower()
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, reporter):
        fetched = _fetch(known, folder, reporter)
        return _arrays(known, fetched, reporter)


def _digits(train: bool) -> Arrays:
    """scikit-learn's digits in a fixed stratified split of 1297 and 500; values 0..16 are scaled to 0..255."""
    bunch = load_digits()
    rows = train_test_split(np.arange(len(bunch.target)), test_size=DIGITS_TEST, stratify=bunch.target, random_state=DIGITS_SEED)
    chosen = np.sort(rows[0 if train else 1])
    images = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)[:, None]
    return images, bunch.target[chosen].astype(np.int64), tuple(str(digit) for digit in range(10))


@contextmanager
def _alone(folder: Path, reporter: Reporter) -> Iterator[None]:
    """Hold the folder's lock: two steps that fetch the same archive at once would write over each other."""
    with (folder / ".lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                reporter.progress(0, 1, "download", "waiting for another step that fetches the same files")
                time.sleep(_POLL)
        yield


def _fetch(known: Builtin, folder: Path, reporter: Reporter) -> Any:
    """torchvision's data set object, its files downloaded to `folder` and checked against their MD5."""
    before = _size(folder)

    def say() -> None:
        done = min(_size(folder) - before, known.download_bytes - 1)
        reporter.progress(max(done, 0), known.download_bytes, "bytes", f"fetching {known.title}")

    try:
        return beside(lambda: getattr(torchvision.datasets, known.loader)(root=folder, download=True, **known.arguments), say)
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise DdcoreError(
            "download_failed",
            f"{known.title} could not be fetched or verified: {error}",
            f"check the worker's network and try again, or get it from {known.homepage} and upload it as a zip",
        ) from error


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue  # unpacking renames files meanwhile
    return total


def _arrays(known: Builtin, fetched: Any, reporter: Reporter) -> Arrays:
    if known.resized:
        images, numbers = _resized(fetched, known.image_shape[1], reporter)
    else:
        data = np.asarray(fetched.data, np.uint8)
        images = data.transpose(0, 3, 1, 2) if data.shape[-1] == known.image_shape[0] else data
        numbers = fetched.targets if hasattr(fetched, "targets") else fetched.labels
    if known.class_counts is None:
        return np.ascontiguousarray(images), None, ()
    classes = getattr(fetched, "classes", None) or [str(i) for i in range(len(known.class_counts))]
    return np.ascontiguousarray(images), np.asarray(numbers, np.int64), tuple(classes)


def _resized(fetched: Any, side: int, reporter: Reporter) -> tuple[NDArray[np.uint8], list[int]]:
    """Every image with its shorter side at `side` (bicubic), cropped to the centre square."""
    images = np.empty((len(fetched), 3, side, side), np.uint8)
    numbers = []
    for i in range(len(fetched)):
        image, number = fetched[i]
        scale = side / min(image.size)
        width, height = (max(side, round(length * scale)) for length in image.size)
        left, top = (width - side) // 2, (height - side) // 2
        small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
        images[i] = np.asarray(small, np.uint8).transpose(2, 0, 1)
        numbers.append(int(number))
        reporter.progress(i + 1, len(fetched), "images")
    return images, numbers
