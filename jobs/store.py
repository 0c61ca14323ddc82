"""The artifact store: immutable files, each named by its sha256, in a local folder or (`jobs.object_store`) on an S3-compatible server."""

import errno
import hashlib
import importlib
import os
import re
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from jobs.errors import Damaged, NotFound, StoreFull, StoreUnusable
from jobs.settings import S3, Settings

PIECE = 1 << 20
NAME = re.compile("[0-9a-f]{64}")
Tick = Callable[[], None]


@dataclass(frozen=True)
class Blob:
    """A file in the store. size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Stored(Blob):
    """A file that a listing of the store shows. modified: when it was put there, by the store's own clock."""

    modified: datetime


@dataclass(frozen=True)
class Store(ABC):
    """Files under `sha256/ab/abcd…`. A file is there whole or not at all; one that no row names is harmless.

    tick: called between the pieces of a long transfer. quota: bytes that all files may take, for who asks before (`jobs.quota`).
    A store on a server raises `StoreAway` while it does not answer.
    """

    tick: Tick = field(default=lambda: None, kw_only=True)
    quota: int = field(default=0, kw_only=True)

    @abstractmethod
    def put(self, source: Path, *, name: str = "") -> Blob:
        """Copy `source` into the store; nobody sees it before it is whole. Raises `StoreFull`.

        name: what a download that goes past the API is to be called; where bytes come again under another name, the first one stays.
        """

    @abstractmethod
    def size(self, sha256: str) -> int:
        """Bytes. Raises `NotFound`."""

    @abstractmethod
    def pieces(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` on, at most `length` of them, as they are stored. Raises `NotFound`, perhaps not before the first, and
        `Damaged` where they cannot be read at all."""

    @abstractmethod
    def place(self, sha256: str, at: Path) -> None:
        """Make the verified file appear at `at`, where nobody may write to it. Raises `NotFound`, `Damaged`."""

    @abstractmethod
    def here(self, sha256: str) -> Path | None:
        """Where the file lies on this machine, or would; None if the store is elsewhere."""

    @abstractmethod
    def address(self, sha256: str) -> str | None:
        """Where anybody may fetch the file for a while, without this service; None if nowhere."""

    @abstractmethod
    def free(self) -> int | None:
        """Bytes that new files may take, as far as the disk goes; None if nobody can tell."""

    @abstractmethod
    def check(self) -> None:
        """Raises `StoreAway` or `OSError` if the store cannot be used."""

    @abstractmethod
    def listing(self, after: str = "") -> Iterator[list[Stored]]:
        """Every file in the store whose name comes after `after`, some at a time, in the order of names. Raises `StoreAway`."""

    @abstractmethod
    def remove(self, names: Collection[str]) -> None:
        """Delete the files of these names for good; one that is not there is no error. Raises `StoreAway`."""

    @abstractmethod
    def set_aside(self, sha256: str) -> bool:
        """Put a file that `Damaged` named out of the way, so that it is gone; False if it turns out whole, or not there. Raises
        `StoreAway`."""

    @abstractmethod
    def leavings(self, before: datetime) -> list[Stored]:
        """What was set aside, or left half-written by a process that died, and was not touched since `before`; by any names."""

    @abstractmethod
    def clear(self, leavings: Collection[Stored]) -> None:
        """Delete `leavings` for good."""

    def missing(self, names: Collection[str]) -> set[str]:
        """Those of the names that no file in the store has. Raises `StoreAway`."""
        return {sha256 for sha256 in names if not self.exists(sha256)}

    def exists(self, sha256: str) -> bool:
        try:
            self.size(sha256)
        except NotFound:
            return False
        return True

    def read(self, sha256: str) -> bytes:
        """The verified bytes of a small file. Raises `NotFound`, `Damaged`."""
        return b"".join(self.verified(sha256))

    def verified(self, sha256: str) -> Iterator[bytes]:
        """All bytes of the file; raises `Damaged` behind the last one if they do not have their name."""
        digest = hashlib.sha256()
        for piece in self.pieces(sha256):
            digest.update(piece)
            self.tick()
            yield piece
        if digest.hexdigest() != sha256:
            raise Damaged(sha256)

    def verify(self, sha256: str) -> bool:
        """Whether the file is there and its bytes still have their name."""
        try:
            for _ in self.verified(sha256):
                pass
        except (NotFound, Damaged):
            return False
        return True


@dataclass(frozen=True)
class FolderStore(Store):
    """A folder that every process shares. reserve: bytes that new work must leave free on its disk."""

    root: Path
    reserve: int = 0

    def put(self, source: Path, *, name: str = "") -> Blob:
        """Written aside, hashed on the way, flushed to disk, then moved into place."""
        aside = self.root / "aside" / secrets.token_hex(16)
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as reader, aside.open("xb") as writer:
                blob = _copy(reader, writer, self.tick)
            place = self.here(blob.sha256)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside, place)  # also one that is there: nobody has looked whether it is whole
            _flush_folder(place.parent)
            return blob
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(source.stat().st_size) from error
            raise
        finally:
            aside.unlink(missing_ok=True)

    def size(self, sha256: str) -> int:
        try:
            return self.here(sha256).stat().st_size
        except FileNotFoundError as error:
            raise NotFound("file", sha256) from error

    def pieces(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        try:
            reader = self.here(sha256).open("rb")
        except FileNotFoundError as error:
            raise NotFound("file", sha256) from error
        with reader:
            reader.seek(start)
            left = self.size(sha256) - start if length is None else length
            while left > 0 and (piece := _read(reader, min(left, PIECE), sha256)):
                left -= len(piece)
                yield piece

    def place(self, sha256: str, at: Path) -> None:
        """Without a copy where the file system allows."""
        for _ in self.verified(sha256):
            pass
        source = self.here(sha256)
        at.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, at)
        except OSError:
            shutil.copyfile(source, at)
            at.chmod(0o444)

    def here(self, sha256: str) -> Path:
        return self.root / blob_key(sha256)

    def address(self, sha256: str) -> None:
        return None

    def free(self) -> int:
        there = next(path for path in (self.root, *self.root.parents) if path.exists())
        return shutil.disk_usage(there).free - self.reserve

    def check(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / ".writable").touch()

    def listing(self, after: str = "") -> Iterator[list[Stored]]:
        for folder in sorted((self.root / "sha256").glob("[0-9a-f][0-9a-f]")):
            if folder.name >= after[:2]:
                paths = sorted(path for path in folder.iterdir() if path.name > after and NAME.fullmatch(path.name))
                yield [one for one in map(_stored, paths) if one is not None]

    def remove(self, names: Collection[str]) -> None:
        for sha256 in names:
            self.here(sha256).unlink(missing_ok=True)

    def set_aside(self, sha256: str) -> bool:
        place, aside = self.here(sha256), self.root / "aside" / f"damaged-{sha256[:12]}-{secrets.token_hex(8)}"
        before = _stored(place)
        if before is None or self.verify(sha256) or _stored(place) != before:
            return False  # gone, whole, or put again since
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.rename(aside)
        except FileNotFoundError:  # another process was faster
            return False
        os.utime(aside)
        return True

    def leavings(self, before: datetime) -> list[Stored]:
        aside = self.root / "aside"
        found = [_stored(path) for path in aside.iterdir()] if aside.is_dir() else []
        return [one for one in found if one is not None and one.modified < before]

    def clear(self, leavings: Collection[Stored]) -> None:
        for one in leavings:
            (self.root / "aside" / one.sha256).unlink(missing_ok=True)


def open_store(settings: Settings, tick: Tick = lambda: None) -> Store:
    """The store that the settings name. Raises `StoreUnusable` if what it needs is not installed or not set."""
    if not settings.store.startswith(S3):
        return FolderStore(Path(settings.store), settings.store_reserve_bytes, tick=tick, quota=settings.store_quota_bytes)
    try:  # by name: who keeps files in a folder need not have the library
        module = importlib.import_module("jobs.object_store")
    except ModuleNotFoundError as error:
        detail = f"POTSTILL_STORE is {settings.store!r}, but {error.name} is not installed"
        raise StoreUnusable(detail, "pip install 'potstill[s3]'") from error
    opened: Store = module.open_bucket(settings, tick)
    return opened


def blob_key(sha256: str) -> str:
    """Where a file lies below the root of any store. Raises `NotFound` for what is no sha256."""
    if not NAME.fullmatch(sha256):
        raise NotFound("file", sha256)
    return f"sha256/{sha256[:2]}/{sha256}"


def _read(reader: IO[bytes], size: int, sha256: str) -> bytes:
    """Bytes that a disk can no longer read are as good as others in their place."""
    try:
        return reader.read(size)
    except OSError as error:
        if error.errno == errno.EIO:
            raise Damaged(sha256) from error
        raise


def _stored(path: Path) -> Stored | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return Stored(path.name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _copy(reader: IO[bytes], writer: IO[bytes], tick: Tick) -> Blob:
    digest, size = hashlib.sha256(), 0
    while piece := reader.read(PIECE):
        writer.write(piece)
        digest.update(piece)
        size += len(piece)
        tick()
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
