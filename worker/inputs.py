"""A local, bounded cache of finished steps' files: read-only folders that the engine reads as if it had just written them."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ddcore.errors import DdcoreError
from jobs.claims import InputFile
from jobs.errors import NotFound
from jobs.store import Store

_ABANDONED = 3600.0  # seconds after which a half-made folder belongs to nobody
_HINT = "retry the job: what is missing is computed again"


class InputCache:
    """Folders under `root`, each named by the files in it; the least recently used go beyond `limit` bytes.

    A folder in use is locked (shared) until this object is closed or the process ends, and is not evicted.
    """

    def __init__(self, root: Path, store: Store, limit: int) -> None:
        self.root, self.store, self.limit = root, store, limit
        self._locks: dict[Path, int] = {}
        root.mkdir(parents=True, exist_ok=True)

    def folder(self, files: Sequence[InputFile]) -> Path:
        """The folder that holds exactly `files`, locked. Raises `DdcoreError` missing_input if one is absent or damaged."""
        listing = "\n".join(f"{f.name} {f.sha256}" for f in sorted(files, key=lambda f: f.name))
        path = self.root / hashlib.sha256(listing.encode()).hexdigest()[:32]
        while True:
            if path in self._locks or self._lock(path):
                os.utime(path)
                return path
            self._make(path, files)

    def close(self) -> None:
        """Let go of the folders in use, then evict down to the limit."""
        for descriptor in self._locks.values():
            os.close(descriptor)
        self._locks.clear()
        self.evict()

    def evict(self) -> None:
        """Remove the folders used longest ago until the limit holds, leaving those in use; and whatever was left half-made."""
        found = []
        for path in self.root.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime, sum(f.stat().st_size for f in path.iterdir()), path))
        total = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if path.name.startswith(".") and used < time.time() - _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
            elif not path.name.startswith(".") and total > self.limit and self._remove(path):
                total -= size

    def _lock(self, path: Path) -> bool:
        """Take a shared lock on the folder, if it is there."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:  # not evicted in between
                self._locks[path] = descriptor
                return True
        os.close(descriptor)
        return False

    def _make(self, path: Path, files: Sequence[InputFile]) -> None:
        aside = Path(tempfile.mkdtemp(prefix=".making-", dir=self.root))
        try:
            for file in files:
                self._place(file, aside / file.name)
            aside.chmod(0o555)
            _settle(aside, path)
        finally:
            _discard(aside)

    def _place(self, file: InputFile, target: Path) -> None:
        try:
            self.store.place(file.sha256, target)
        except NotFound:
            raise DdcoreError("missing_input", f"the stored file {file.name} ({file.sha256[:12]}) is gone", _HINT) from None
        if target.stat().st_size != file.size:
            raise DdcoreError("missing_input", f"the stored file {file.name} ({file.sha256[:12]}) is damaged", _HINT)

    def _remove(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _discard(path)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True


def _settle(aside: Path, path: Path) -> None:
    """Move a finished folder to its place, unless another process has put the same one there first."""
    try:
        aside.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _discard(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        folder.chmod(0o755)  # nothing can be removed from a read-only folder
        shutil.rmtree(folder)
