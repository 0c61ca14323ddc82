"""The artifact store: immutable files in a local folder, each named by its sha256."""

import errno
import hashlib
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from jobs.errors import NotFound, StoreFull

PIECE = 1 << 20


@dataclass(frozen=True)
class Blob:
    """A file in the store. size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Store:
    """`root/sha256/ab/abcd…`. A file is there whole or not at all; one that no row names is harmless."""

    root: Path

    def path(self, sha256: str) -> Path:
        """Where the file lies, or would."""
        if len(sha256) != 64 or not all(c in "0123456789abcdef" for c in sha256):
            raise NotFound("file", sha256)
        return self.root / "sha256" / sha256[:2] / sha256

    def exists(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def size(self, sha256: str) -> int:
        """Bytes. Raises `NotFound`."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError as error:
            raise NotFound("file", sha256) from error

    def put(self, source: Path) -> Blob:
        """Copy `source` into the store: written aside, hashed on the way, flushed to disk, then moved into place. Raises `StoreFull`."""
        aside = self.root / "aside" / secrets.token_hex(16)
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as reader, aside.open("xb") as writer:
                blob = _copy(reader, writer)
            place = self.path(blob.sha256)
            if not (place.is_file() and place.stat().st_size == blob.size):
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(aside, place)
                _flush_folder(place.parent)
            return blob
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(source.stat().st_size) from error
            raise
        finally:
            aside.unlink(missing_ok=True)

    def verify(self, sha256: str) -> bool:
        """Whether the file is there and its bytes still have their name."""
        if not self.exists(sha256):
            return False
        with self.path(sha256).open("rb") as reader:
            return hashlib.file_digest(reader, "sha256").hexdigest() == sha256

    def place(self, sha256: str, at: Path) -> None:
        """Make the file appear at `at`, without a copy where the file system allows; nobody may write to it. Raises `NotFound`."""
        source = self.path(sha256)
        if not source.is_file():
            raise NotFound("file", sha256)
        at.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, at)
        except OSError:
            shutil.copyfile(source, at)


def _copy(reader: IO[bytes], writer: IO[bytes]) -> Blob:
    digest, size = hashlib.sha256(), 0
    while piece := reader.read(PIECE):
        writer.write(piece)
        digest.update(piece)
        size += len(piece)
    writer.flush()
    os.fsync(writer.fileno())
    os.fchmod(writer.fileno(), 0o444)
    return Blob(digest.hexdigest(), size)


def _flush_folder(folder: Path) -> None:
    """A rename is only on disk when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
