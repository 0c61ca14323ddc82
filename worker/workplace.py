"""The folder in which a step works on this machine: where its checkpoint outlives an attempt."""

import contextlib
import errno
import fcntl
import os
import shutil
import time
from pathlib import Path

_FORGOTTEN = 7 * 24 * 3600.0  # seconds
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Workplace:
    """The folder of a step on this machine: `work` (its checkpoint) outlives an attempt, `out` begins empty each time.

    It is locked while in use. If an earlier attempt that was given up is still writing there, this one has a folder to itself.
    """

    def __init__(self, root: Path, name: str, attempt: int) -> None:
        self.root = root
        for path in (root / name, root / f"{name}.{attempt}"):
            path.mkdir(parents=True, exist_ok=True)
            self._held = _lock(path)
            if self._held is not None:
                break
        self.path, self.work, self.out = path, path / "work", path / "out"
        self.work.mkdir(exist_ok=True)
        self.clear()
        self.out.mkdir()
        os.utime(path)

    def close(self) -> None:
        """Let another attempt work here; the end of the process does the same."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def size(self) -> int:
        """Bytes of the files that are there."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    def clear(self) -> None:
        """Remove what the attempt has made so far, but for its checkpoint."""
        shutil.rmtree(self.out, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def sweep(self) -> None:
        """Remove the folders that nobody has worked in for a week: of steps that failed, were cancelled, or went to another machine."""
        for path in self.root.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if path.stat().st_mtime < time.time() - _FORGOTTEN and (held := _lock(path)) is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    os.close(held)


def free_bytes(folder: Path) -> int:
    """What the disk of a folder, which need not be there yet, has to spare."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that it came of, says that a disk, or somebody's share of one, is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    if any(os.strerror(code) in str(error) for code in _FULL):  # libraries that are not Python's leave only the words
        return True
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return before is not None and is_full(before)


def _lock(path: Path) -> int | None:
    """A descriptor that locks the folder until it is closed, or the process ends; None if another process has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
