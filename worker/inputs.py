"""A local, bounded cache of stored files: read-only folders that the engine reads as if it had just written them."""

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
from jobs.errors import Damaged, NotFound
from jobs.store import PIECE, Store

_ABANDONED = 12 * 3600.0  # seconds after which a half-made folder belongs to nobody; large files come slowly from a server
_HINT = "retry the job: what is missing is computed again"


class MissingInput(DdcoreError):
    """A stored file that should be read is gone, or was damaged and is now set aside."""

    def __init__(self, file: InputFile, said: str, hint: str) -> None:
        named = file.sha256[:12] if file.name == file.sha256 else f"{file.name} ({file.sha256[:12]})"
        super().__init__("missing_input", f"the stored file {named} {said}", hint)
        self.sha256 = file.sha256


class InputCache:
    """Folders under `root`, each named by the files in it; the least recently used go beyond `limit` bytes.

    A folder in use is locked (shared) until this object is closed or the process ends, and is not evicted.
    """

    def __init__(self, root: Path, store: Store, limit: int) -> None:
        self.root, self.store, self.limit = root, store, limit
        self._locks: dict[Path, int] = {}
        root.mkdir(parents=True, exist_ok=True)

    def folder(self, files: Sequence[InputFile], hint: str = _HINT) -> Path:
        """The folder that holds exactly `files`, locked. Raises `MissingInput`, with the hint, if one is absent or damaged."""
        listing = "\n".join(f"{f.name} {f.sha256}" for f in sorted(files, key=lambda f: f.name))
        path = self.root / hashlib.sha256(listing.encode()).hexdigest()[:32]
        made = False
        while path not in self._locks:
            if not self._lock(path):
                self._make(path, files, hint)
                made = True
            elif not made and not all(self._intact(path / file.name, file.sha256) for file in files):
                self._push_aside(path)
        os.utime(path)
        return path

    def file(self, sha256: str) -> Path:
        """One stored file, in a folder of its own. Raises `MissingInput`."""
        return self.folder([InputFile(sha256, sha256, 0)], "send the file again") / sha256

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
                _discard(path)
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

    def _intact(self, path: Path, sha256: str) -> bool:
        """Whether a kept file still has the bytes that it came with."""
        digest = hashlib.sha256()
        try:
            with path.open("rb") as reader:
                while piece := reader.read(PIECE):
                    digest.update(piece)
                    self.store.tick()
        except OSError:
            return False
        return digest.hexdigest() == sha256

    def _push_aside(self, path: Path) -> None:
        """Give up a damaged folder. Whoever reads in it now may go on; it is removed when it belongs to nobody."""
        os.close(self._locks.pop(path))
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.utime(path)
            path.rename(tempfile.mkdtemp(prefix=".damaged-", dir=self.root))

    def _make(self, path: Path, files: Sequence[InputFile], hint: str) -> None:
        aside = Path(tempfile.mkdtemp(prefix=".making-", dir=self.root))
        try:
            for file in files:
                self._place(file, aside / file.name, hint)
            aside.chmod(0o555)
            _settle(aside, path)
        finally:
            _discard(aside)

    def _place(self, file: InputFile, target: Path, hint: str) -> None:
        try:
            self.store.place(file.sha256, target)
        except NotFound:
            raise MissingInput(file, "is gone", hint) from None
        except Damaged:
            self.store.set_aside(file.sha256)  # so that it may be put again
            raise MissingInput(file, "is damaged", hint) from None

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
