"""The artifact store in a bucket of an S3-compatible server."""

import hashlib
import os
import secrets
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from jobs.errors import Damaged, NotFound, StoreAway, StoreFull, StoreUnusable
from jobs.settings import S3, Settings
from jobs.store import NAME, PIECE, Blob, Store, Stored, Tick, blob_key

PART = 8 * PIECE  # bytes of one request
LONGEST = 400  # characters of what the library says
AT_ONCE = 4  # requests under way
ASKING = 32  # small questions under way
MOST_COPIED = 5 * 1024**3  # bytes that S3 copies in one request
MOST_PARTS = 9_000  # S3 allows 10,000
FULL = ("StorageFull", "QuotaExceeded", "InsufficientStorage")  # what servers with a limit answer
# Four tries again, for some three seconds: who waits at the API is told in time; a worker waits longer by itself.
RETRY: Any = {
    "max_retries": 4,
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=2), "base": 2},
    "retry_timeout": timedelta(seconds=60),
}


@dataclass(frozen=True)
class ObjectStore(Store):
    """A bucket, or a prefix in one.

    public: the same bucket by the endpoint that is given to those who download. written: set when `check` could write.
    """

    bucket: S3Store
    public: S3Store
    url_seconds: int
    written: threading.Event = field(default_factory=threading.Event, kw_only=True)

    def put(self, source: Path, *, name: str = "") -> Blob:
        """Read twice: a server can only be sent what has its name already. Bytes that are there are not sent again."""
        blob = Blob(*_digest(source, self.tick))
        if self._has(blob):
            return blob
        attributes: Any = {"Content-Disposition": f'attachment; filename="{_plain(name)}"'} if name else None
        part = max(PART, -(-blob.size // MOST_PARTS))
        with _asking(blob.sha256, blob.size):
            obstore.put(
                self.bucket,
                blob_key(blob.sha256),
                _steady(source, blob, self.tick),
                attributes=attributes,
                chunk_size=part,
                max_concurrency=AT_ONCE,
            )
        return blob

    def size(self, sha256: str) -> int:
        with _asking(sha256):
            return int(obstore.head(self.bucket, blob_key(sha256))["size"])

    def pieces(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """A few ranges at once, each tried again by itself: a large file need not come in one long answer."""
        whole = self.size(sha256)
        end = whole if length is None else min(start + length, whole)
        for first in range(start, end, AT_ONCE * PART):
            starts = list(range(first, min(first + AT_ONCE * PART, end), PART))
            with _asking(sha256):
                ends = [min(at + PART, end) for at in starts]
                got = obstore.get_ranges(self.bucket, blob_key(sha256), starts=starts, ends=ends, coalesce=0)
            yield from map(bytes, got)

    def place(self, sha256: str, at: Path) -> None:
        """Downloaded; once more if it did not arrive whole."""
        at.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._download(sha256, at)
        except Damaged:
            self._download(sha256, at)
        at.chmod(0o444)

    def here(self, sha256: str) -> None:
        return None

    def address(self, sha256: str) -> str:
        with _asking(sha256):
            return obstore.sign(self.public, "GET", blob_key(sha256), timedelta(seconds=self.url_seconds))

    def free(self) -> None:
        return None

    def check(self) -> None:
        """Listed; and written to, but only once: a bucket that keeps old versions would keep one of each look."""
        with _asking(""):
            if not self.written.is_set():
                obstore.put(self.bucket, ".writable", b"")
                self.written.set()
            next(iter(obstore.list(self.bucket, prefix="sha256/00", chunk_size=1)), None)

    def listing(self, after: str = "") -> Iterator[list[Stored]]:
        for some in self._listed("sha256", f"sha256/{after[:2]}/{after}" if after else None):
            yield [one for one in some if NAME.fullmatch(one.sha256)]

    def remove(self, names: Collection[str]) -> None:
        if names:
            with _asking(""):
                obstore.delete(self.bucket, [blob_key(sha256) for sha256 in names])

    def set_aside(self, sha256: str) -> bool:
        with suppress(NotFound), _asking(sha256):
            size = self.size(sha256)
            if self.verify(sha256):
                return False
            if size <= MOST_COPIED:
                obstore.copy(self.bucket, blob_key(sha256), f"aside/damaged-{sha256[:12]}-{secrets.token_hex(8)}")
            obstore.delete(self.bucket, blob_key(sha256))
            return True
        return False

    def leavings(self, before: datetime) -> list[Stored]:
        """What was set aside; of uploads that broke off, the bucket's own rules take care."""
        return [one for some in self._listed("aside") for one in some if one.modified < before]

    def clear(self, leavings: Collection[Stored]) -> None:
        if leavings:
            with _asking(""):
                obstore.delete(self.bucket, [f"aside/{one.sha256}" for one in leavings])

    def missing(self, names: Collection[str]) -> set[str]:
        """Asked about many at once."""
        asked = list(names)
        with ThreadPoolExecutor(ASKING) as pool:
            return {sha256 for sha256, there in zip(asked, pool.map(self.exists, asked), strict=True) if not there}

    def _listed(self, folder: str, offset: str | None = None) -> Iterator[list[Stored]]:
        with _asking(""):
            for some in obstore.list(self.bucket, prefix=folder, offset=offset, chunk_size=1000):
                yield [Stored(one["path"].rpartition("/")[2], one["size"], one["last_modified"]) for one in some]

    def _has(self, blob: Blob) -> bool:
        try:
            return self.size(blob.sha256) == blob.size
        except NotFound:
            return False

    def _download(self, sha256: str, at: Path) -> None:
        try:
            with at.open("wb") as writer:
                for piece in self.verified(sha256):
                    writer.write(piece)
        except BaseException:
            at.unlink(missing_ok=True)
            raise


def open_bucket(settings: Settings, tick: Tick) -> ObjectStore:
    """The store that s3://bucket/prefix names, with what the settings say; what they leave open comes from AWS_* variables."""
    endpoint = settings.store_endpoint or os.environ.get("AWS_ENDPOINT_URL_S3", "") or os.environ.get("AWS_ENDPOINT_URL", "")
    public = _bucket(settings, settings.store_public_endpoint or endpoint)
    return ObjectStore(_bucket(settings, endpoint), public, settings.store_url_seconds, tick=tick, quota=settings.store_quota_bytes)


def _bucket(settings: Settings, endpoint: str) -> S3Store:
    bucket, _, prefix = settings.store.removeprefix(S3).partition("/")
    given = {
        "endpoint": endpoint,
        "region": settings.store_region,
        "access_key_id": settings.store_access_key_id,
        "secret_access_key": settings.store_secret_access_key.get_secret_value(),
    }
    config: Any = {key: value for key, value in given.items() if value}
    client: Any = {"allow_http": endpoint.startswith("http://"), "connect_timeout": timedelta(seconds=5), "timeout": timedelta(minutes=2)}
    try:
        return S3Store(bucket, prefix=prefix.strip("/") or None, config=config, client_options=client, retry_config=RETRY)
    except (BaseError, ValueError) as error:
        raise StoreUnusable(f"{settings.store} cannot be opened: {_said(error)}", "check the settings POTSTILL_STORE_*") from error


@contextmanager
def _asking(sha256: str, size: int = 0) -> Iterator[None]:
    """The library's errors as ours. size: of what is being stored."""
    try:
        yield
    except FileNotFoundError as error:
        if not sha256 or "NoSuchBucket" in str(error):
            raise StoreAway("there is no such bucket") from error
        raise NotFound("file", sha256) from error
    except BaseError as error:
        if any(word in str(error) for word in FULL):
            raise StoreFull(size) from error
        raise StoreAway(_said(error)) from error


def _said(error: Exception) -> str:
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:LONGEST]


def _digest(source: Path, tick: Tick) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader:
        while piece := reader.read(PIECE):
            digest.update(piece)
            size += len(piece)
            tick()
    return digest.hexdigest(), size


def _steady(source: Path, blob: Blob, tick: Tick) -> Iterator[bytes]:
    """The bytes of the file, if they are still those of `blob`; an error in the middle makes the server forget what it has."""
    digest = hashlib.sha256()
    with source.open("rb") as reader:
        while piece := reader.read(PIECE):
            digest.update(piece)
            tick()
            yield piece
    if digest.hexdigest() != blob.sha256:
        raise OSError(f"{source} changed while it was being stored")


def _plain(name: str) -> str:
    """As a header takes it."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._ -") else "_" for letter in name)
