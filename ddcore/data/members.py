"""The files of an upload, listed and read without trusting what the upload says of itself. Torch-free."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ddcore.errors import DdcoreError

MIB = 1 << 20
_END = b"PK\x05\x06"
_END64 = b"PK\x06\x06"
_LOCATOR = b"PK\x06\x07"
_END_BYTES, _END64_BYTES, _LOCATOR_BYTES = 22, 56, 20
_MOST_COMMENT = 0xFFFF
_DIRECTORY_BYTES_A_MEMBER = 1024  # a central directory entry is 46 bytes and a name


@dataclass(frozen=True)
class Limits:
    """What an upload may hold. Sizes in bytes unless they say otherwise."""

    images: int = 1_000_000
    side: int = 1024  # pixels
    least_side: int = 4
    member: int = 32 * MIB
    total: int = 32 * 1024 * MIB  # unpacked
    pixels: int = 16 * 1024 * MIB  # decoded, as the uint8 tensor
    ratio: int = 100  # unpacked to packed, of members above one MiB


class Source(Protocol):
    """Named members of a zip or a folder. Names are relative, with forward slashes; folders' names are listed apart."""

    names: list[str]
    folders: list[str]

    def read(self, name: str) -> bytes:
        """The whole member; raises `bad_dataset` if it is damaged or larger than it said."""


def refuse(detail: str, hint: str) -> DdcoreError:
    """An archive or image that cannot be used."""
    return DdcoreError("bad_dataset", detail, hint)


class ZipSource:
    """A zip whose directory has been checked: no encryption, no links, no paths that lead outside, no bombs."""

    def __init__(self, file: zipfile.ZipFile, path: Path, limits: Limits) -> None:
        self._file, self._limits = file, limits
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self.folders = []
        packed = unpacked = 0
        for info in file.infolist():
            _check_name(info.orig_filename)
            if info.is_dir():
                self.folders.append(info.filename.rstrip("/"))
                continue
            _check_info(info, limits)
            if info.filename in self._infos:
                raise refuse(f"{info.filename} is in the zip twice", "make the zip again; each name must occur once")
            self._infos[info.filename] = info
            packed, unpacked = packed + info.compress_size, unpacked + info.file_size
            if len(self._infos) > 2 * limits.images:
                raise refuse(f"the zip holds more than {2 * limits.images:,} files", f"at most {limits.images:,} images are allowed")
        if packed > path.stat().st_size:
            raise refuse("members of the zip overlap: they claim more bytes than the file has", "make the zip again with an ordinary tool")
        if unpacked > limits.total:
            raise refuse(
                f"the zip unpacks to {unpacked / MIB:,.0f} MiB; {limits.total / MIB:,.0f} MiB are allowed", "upload fewer or smaller images"
            )
        self.names = list(self._infos)

    def read(self, name: str) -> bytes:
        info = self._infos[name]
        try:
            with self._file.open(info) as stream:
                data = stream.read(self._limits.member + 1)
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error) as error:
            raise refuse(f"{name} cannot be unpacked: {error}", "the zip is damaged; make and upload it again") from error
        if len(data) > self._limits.member or len(data) != info.file_size:
            raise refuse(
                f"{name} unpacks to another size than the {info.file_size:,} bytes it declares", "make the zip again with an ordinary tool"
            )
        return data


class FolderSource:
    """A folder of files. Links are refused wherever they lead, so that nothing outside the folder is read."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self._root, self._limits = root, limits
        self.names, self.folders = [], []
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_symlink():
                raise refuse(f"{name} is a symbolic link", "put the file itself there; links are not followed")
            if path.is_dir():
                self.folders.append(name)
            elif not path.is_file():
                raise refuse(f"{name} is not a regular file", "leave only images in the folder")
            elif path.stat().st_size > limits.member:
                raise _too_large(name, path.stat().st_size, limits)
            else:
                self.names.append(name)

    def read(self, name: str) -> bytes:
        with (self._root / name).open("rb") as stream:
            data = stream.read(self._limits.member + 1)
        if len(data) > self._limits.member:
            raise _too_large(name, len(data), self._limits)
        return data


@contextmanager
def open_source(path: Path, limits: Limits) -> Iterator[Source]:
    """The members of the zip or folder at `path`; raises `DdcoreError` bad_dataset if anything about it is unsafe."""
    if path.is_dir():
        yield FolderSource(path, limits)
        return
    if not path.is_file():
        raise DdcoreError("missing_input", f"there is no archive or folder at {path}", "check the path, or upload the archive again")
    _check_directory_size(path, limits)
    try:
        file = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise refuse(f"the zip's directory cannot be read: {error}", "the file is damaged; make and upload it again") from error
    with file:
        yield ZipSource(file, path, limits)


def _check_directory_size(path: Path, limits: Limits) -> None:
    """Refuse a zip whose directory is too large to be listed in memory, before anything lists it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        tail_at = max(0, size - _END_BYTES - _MOST_COMMENT - _END64_BYTES - _LOCATOR_BYTES)
        file.seek(tail_at)
        tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        what = "is not a zip, or only the beginning of one" if size else "is empty, and so not a zip"
        raise refuse(f"the file {what}", "upload a .zip of images, in one folder a class, or flat without labels")
    (directory,) = struct.unpack_from("<L", tail, at + 12)
    locator, record = at - _LOCATOR_BYTES, at - _LOCATOR_BYTES - _END64_BYTES
    if locator >= 0 and tail.startswith(_LOCATOR, locator):
        if record < 0 or not tail.startswith(_END64, record):
            raise refuse("the zip's 64-bit directory record is not where it belongs", "make the zip again with an ordinary tool")
        (directory,) = struct.unpack_from("<Q", tail, record + 40)
    if directory > limits.images * _DIRECTORY_BYTES_A_MEMBER:
        most = f"far more than {limits.images:,} images need"
        raise refuse(f"the zip's directory has {directory:,} bytes: {most}", "upload fewer images, with shorter names")


def _check_name(name: str) -> None:
    parts = name.split("/")
    why = None
    if "\\" in name:
        why = "has a backslash in its path"
    elif name.startswith("/") or (len(parts[0]) == 2 and parts[0][1] == ":"):
        why = "has an absolute path"
    elif ".." in parts:
        why = "has a path that leads outside the archive"
    elif any(ord(letter) < 32 for letter in name):
        why = "has a control character in its name"
    if why:
        raise refuse(f"{name!r} {why}", "only relative paths with forward slashes are allowed; make the zip again with an ordinary tool")


def _check_info(info: zipfile.ZipInfo, limits: Limits) -> None:
    name = info.filename
    if info.flag_bits & 0x41:
        raise refuse(f"{name} is encrypted", "upload a zip without a password")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        what = "a symbolic link" if kind == stat.S_IFLNK else "a special file"
        raise refuse(f"{name} is {what}", "only regular files are allowed; put the images themselves in the zip")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise refuse(f"{name} is packed by method {info.compress_type}", "only stored and deflated members are allowed")
    if info.file_size > limits.member:
        raise _too_large(name, info.file_size, limits)
    if info.file_size > MIB and info.file_size > limits.ratio * max(info.compress_size, 1):
        raise refuse(
            f"{name} unpacks {info.file_size / max(info.compress_size, 1):.0f}-fold, to {info.file_size:,} bytes",
            f"at most {limits.ratio}-fold is allowed above one MiB; this looks like a decompression bomb",
        )


def _too_large(name: str, size: int, limits: Limits) -> DdcoreError:
    return refuse(f"{name} has {size:,} bytes; {limits.member:,} are allowed", "resize the image before uploading")
