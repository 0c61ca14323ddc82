"""Archives of images: what one holds, checked without decoding pixels; and its pixels as one array. Torch-free.

Allowed: PNG, JPEG, BMP or WebP files, all of one size, in one folder a class, or flat (or all in one folder) without labels; the
whole may lie in one more folder. Grey images stay at one channel if all are grey; any other mixture becomes RGB.
"""

import io
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ddcore.data.members import Limits, Source, open_source, refuse

__all__ = ["ArchiveFacts", "Limits", "inspect", "read_archive"]

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
GREY = ("1", "L")
COLOUR = ("RGB", "RGBA", "RGBX", "P", "PA", "LA", "CMYK", "YCbCr")  # converted to RGB
JUNK_FOLDERS = ("__MACOSX",)
JUNK_FILES = ("thumbs.db", "desktop.ini")
TEXT_ENDINGS = (".txt", ".md")
TEXT_STEMS = ("readme", "license", "licence")
ARCHIVE_ENDINGS = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # an image that lacks them near its end may be cut short, or only unusual
LONGEST_TRAILER = 64

DAMAGE = (OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, struct.error, zlib.error)  # what PIL raises on bad bytes

Progress = Callable[[int, int], None]
Pixels = tuple[NDArray[np.uint8], int]


@dataclass(frozen=True)
class ArchiveFacts:
    """What an archive holds. image_shape: channels, height, width. classes and class_counts: sorted by name, or None without labels.

    members: paths of the images, sorted; this is the order of the tensor made of them.
    """

    num_images: int
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...] | None
    class_counts: tuple[int, ...] | None
    members: tuple[str, ...]


def inspect(path: Path, limits: Limits | None = None) -> ArchiveFacts:
    """Facts of the zip or folder at `path`, from names and image headers alone; raises `DdcoreError` bad_dataset."""
    limits = limits or Limits()
    with open_source(path, limits) as source:
        return _inspect(source, limits, lambda done, total: None)


def _fresh(facts: ArchiveFacts) -> Pixels:
    return np.empty((facts.num_images, *facts.image_shape), np.uint8), 0


def read_archive(
    path: Path,
    progress: Progress = lambda done, total: None,
    limits: Limits | None = None,
    begin: Callable[[ArchiveFacts], Pixels] = _fresh,
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Images uint8 [n, c, h, w] in sorted order of their paths, labels int64 [n] or None, and class names or None.

    `progress(done, total)` is called for every image, twice over: headers first, pixels then; it may raise to stop. begin: gives the
    array to fill, and how many of the first images are in it already.
    """
    limits = limits or Limits()
    with open_source(path, limits) as source:
        facts = _inspect(source, limits, lambda done, total: progress(done, 2 * total))
        channels, height, width = facts.image_shape
        images, done = begin(facts)
        for i, name in enumerate(facts.members[done:], start=done):
            pixels = _decode(name, source.read(name), "L" if channels == 1 else "RGB", (width, height))
            images[i] = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
            progress(facts.num_images + i + 1, 2 * facts.num_images)
    if facts.classes is None:
        return images, None, None
    number = {name: i for i, name in enumerate(facts.classes)}
    labels = np.array([number[_folder(name)] for name in facts.members], np.int64)
    return images, labels, facts.classes


def _inspect(source: Source, limits: Limits, progress: Progress) -> ArchiveFacts:
    members = sorted(name for name in source.names if not _is_junk(name))
    if not members:
        raise refuse("there is no image in it", "put images in one folder a class, or flat without labels")
    if len(members) > limits.images:
        raise refuse(f"it holds {len(members):,} images; {limits.images:,} are allowed", "upload fewer images")
    counts = _classes(members, source.folders)
    size, modes, first = (0, 0), set(), members[0]
    for i, name in enumerate(members):
        one, mode = _header(name, source.read(name), limits)
        if i == 0:
            size = one
        elif one != size:
            raise refuse(
                f"images differ in size: {first} is {size[0]}x{size[1]}, {name} is {one[0]}x{one[1]} (width x height)",
                "resize all images to one size before uploading",
            )
        modes.add(mode)
        progress(i + 1, len(members))
    channels = 1 if modes == {"L"} else 3
    if len(members) * channels * size[0] * size[1] > limits.pixels:
        given = f"{len(members):,} images of {size[0]}x{size[1]}"
        raise refuse(f"{given} take more than the {limits.pixels:,} bytes allowed", "upload fewer or smaller images")
    return ArchiveFacts(
        num_images=len(members),
        image_shape=(channels, size[1], size[0]),
        classes=None if counts is None else tuple(counts),
        class_counts=None if counts is None else tuple(counts.values()),
        members=tuple(members),
    )


def _is_junk(name: str) -> bool:
    path = PurePosixPath(name)
    lower = path.name.lower()
    hidden = any(part.startswith(".") or part in JUNK_FOLDERS for part in path.parts)
    text = path.suffix.lower() in TEXT_ENDINGS or path.stem.lower() in TEXT_STEMS
    return hidden or lower in JUNK_FILES or text


def _folder(name: str) -> str:
    return PurePosixPath(name).parent.name


def _classes(members: list[str], folders: Iterable[str]) -> dict[str, int] | None:
    """Images of each class, sorted by its name; None if the images lie flat, or all in one folder."""
    parents: dict[tuple[str, ...], str] = {}
    for name in members:
        parents.setdefault(PurePosixPath(name).parent.parts, name)
    if len(parents) == 1:
        return None
    depth = min(len(parts) for parts in parents)
    roots = {parts[:-1] for parts in parents}
    if depth == 0 or len(roots) > 1 or depth > 2:
        one, other = sorted(parents.values(), key=lambda name: (name.count("/"), name))[:: len(parents) - 1][:2]
        raise refuse(
            f"labels cannot be told from the folders: there are {one} and {other}",
            "put every image in its class's folder (class/image.png), or every image in one folder without labels",
        )
    (root,) = roots
    known = {parts[-1] for parts in parents}
    for folder in folders:
        parts = PurePosixPath(folder).parts
        if parts[:-1] == root and parts[-1] not in known and not _is_junk(folder):
            raise refuse(f"class folder {folder} holds no image", "put images in it, or leave it out")
    counts = Counter(_folder(name) for name in members)
    return {name: counts[name] for name in sorted(counts)}


def _open(name: str, data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if name.lower().endswith(ARCHIVE_ENDINGS):
            raise refuse(f"{name} is an archive inside the archive", "put the images themselves in the zip") from error
        what = "is not an image" if data else "is empty, and so not an image"
        raise refuse(f"{name} {what}", f"leave only {', '.join(FORMATS)} files in the archive") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise refuse(f"{name} declares far too many pixels", "resize the image before uploading") from error
    except DAMAGE as error:
        raise refuse(f"{name} has a damaged image header: {error}", "replace the file, or leave it out") from error


def _header(name: str, data: bytes, limits: Limits) -> tuple[tuple[int, int], str]:
    """Width and height, and "L" or "RGB"; raises `bad_dataset` for what no job could use."""
    with _open(name, data) as image:
        width, height = image.size
        if max(width, height) > limits.side or min(width, height) < limits.least_side:
            allowed = f"sides from {limits.least_side} to {limits.side} pixels are allowed"
            raise refuse(f"{name} is {width}x{height}; {allowed}", "resize all images to one size")
        if getattr(image, "is_animated", False):
            raise refuse(f"{name} is animated", "only still images are allowed")
        deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))  # PIL cuts 16-bit colour to 8 without a word
        if deep or image.mode not in GREY + COLOUR:
            raise refuse(
                f"{name} has more than 8 bits a channel (mode {image.mode}); 8 are allowed",
                "convert the images to 8-bit grey or RGB: 16-bit is not rounded for you",
            )
        if LAST_BYTES.get(image.format or "", b"") not in data[-LONGEST_TRAILER:]:
            _pixels(name, image)  # cut short: rather now than when a job reads it
        return (width, height), "L" if image.mode in GREY else "RGB"


def _decode(name: str, data: bytes, mode: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pixels uint8 [h, w] or [h, w, 3]; raises `bad_dataset` if they are cut short or damaged."""
    with _open(name, data) as image:
        if image.size != size:
            raise refuse(f"{name} has changed its size since it was checked", "upload the archive again, and leave it alone meanwhile")
        return np.asarray(_pixels(name, image).convert(mode), np.uint8)


def _pixels(name: str, image: Image.Image) -> Image.Image:
    try:
        image.load()
    except DAMAGE as error:
        raise refuse(f"{name} has damaged or missing pixels: {error}", "replace the file, or leave it out") from error
    return image
