"""A C++ file made into a library for this very machine, by its own compiler, once."""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared", "-fPIC")
COMPILE_SECONDS = 180.0
DIGEST = hashlib.sha256().digest_size


class NotCompiled(Exception):
    """Says in one sentence why there is no library."""


def library_of(source: Path) -> ctypes.CDLL:
    """`source` compiled and loaded; from the user's cache where it is there already. Raises NotCompiled.

    The cached file's name holds a hash of all that went into it: the source, the headers beside it, and the processor, since a home may
    be shared by several machines. Its last bytes are its own hash, since loading a damaged library kills the process. What is loaded
    runs as this user, so a file or folder that anybody else may have written to is left alone.
    """
    compiler = _compiler()
    try:
        texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    except OSError as error:
        raise NotCompiled(f"{source.name} was not installed: {error}") from error
    key = hashlib.sha256("\0".join([*texts, *FLAGS, _version(compiler), _processor()]).encode()).hexdigest()
    try:
        folder = _cache()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _ours_alone(folder, stat.S_ISDIR)
        cached = folder / f"{source.stem}-{key[:32]}.so"
        if not _sound(cached):
            if cached.exists():
                log.warning("%s is damaged: compiling it again", cached)
            _compile(compiler, source, cached)
        return _load(cached)
    except OSError as error:
        library = _for_this_process(compiler, source)
        log.warning("%s was compiled for this process alone: the user's cache cannot keep it (%s)", source.name, error)
        return library


def _for_this_process(compiler: list[str], source: Path) -> ctypes.CDLL:
    try:
        with tempfile.TemporaryDirectory(prefix="potstill-") as folder:  # what is loaded stays loaded when its file is gone
            _compile(compiler, source, library := Path(folder, "own.so"))
            return _load(library)
    except OSError as error:
        raise NotCompiled(f"there is no place to compile in: {error}") from error


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # as the XDG specification has it
        return Path(given, "potstill")
    try:
        return Path.home() / ".cache" / "potstill"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _ours_alone(path: Path, of_kind: Callable[[int], bool]) -> None:
    """Raises OSError unless `path` is itself of that kind, and no link to one, and this user is its owner and alone may write to it."""
    found = path.lstat()
    if not of_kind(found.st_mode):
        raise OSError(f"{path} is a link, or not of the kind it should be")
    if found.st_uid != os.geteuid():
        raise OSError(f"{path} belongs to another user")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"others may write to {path}")


def _compiler() -> list[str]:
    """The first compiler there is, as the words of a command."""
    wanted = os.environ.get("CXX", "")
    try:
        commands = [shlex.split(wanted)] if wanted.strip() else [["g++"], ["c++"], ["clang++"]]
    except ValueError as error:
        raise NotCompiled(f"CXX={wanted!r} is not a command: {error}") from error
    for command in commands:
        if shutil.which(command[0]):
            return command
    raise NotCompiled(f"there is no C++ compiler on this machine (looked for {', '.join(c[0] for c in commands)})")


def _version(compiler: list[str]) -> str:
    return f"{shutil.which(compiler[0])} {_run([*compiler, '--version'])}"


def _processor() -> str:
    """What -march=native depends on."""
    try:
        first = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        first = [platform.processor()]
    lasting = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join([platform.machine(), *(line for line in first if line.startswith(lasting))])


def _run(command: list[str]) -> str:
    """What `command` prints; raises NotCompiled if it fails or takes too long, and then ends all processes that it started."""
    try:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                printed, complaint = process.communicate(timeout=COMPILE_SECONDS)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # a compiler is a driver, whose children do the work
                raise
    except subprocess.TimeoutExpired as error:
        raise NotCompiled(f"{command[0]} took more than {COMPILE_SECONDS:.0f} s") from error
    except OSError as error:
        raise NotCompiled(f"{command[0]} does not start: {error}") from error
    if process.returncode:
        lines = (complaint or printed).strip().splitlines()
        said = next((line for line in lines if "error" in line), lines[0] if lines else "no word of why")
        raise NotCompiled(f"{command[0]} failed with status {process.returncode}: {said}")
    return printed


def _compile(compiler: list[str], source: Path, to: Path) -> None:
    """Several processes may do this at once: each builds aside, and the last to finish stays."""
    handle, name = tempfile.mkstemp(dir=to.parent, prefix=f".{to.stem}-", suffix=".so")
    os.close(handle)
    aside = Path(name)
    try:
        _run([*compiler, *FLAGS, str(source), "-o", name])
        built = aside.read_bytes()
        with aside.open("ab") as file:  # the loader ignores what follows the last section
            file.write(hashlib.sha256(built).digest())
        aside.chmod(0o700)  # whatever the linker made of it
        aside.replace(to)
    finally:
        aside.unlink(missing_ok=True)


def _sound(library: Path) -> bool:
    """Whether the library is there and whole. Raises OSError where it may be somebody else's work."""
    try:
        _ours_alone(library, stat.S_ISREG)
        content = library.read_bytes()
    except FileNotFoundError:
        return False
    return len(content) > DIGEST and hashlib.sha256(content[:-DIGEST]).digest() == content[-DIGEST:]


def _load(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:  # a folder that nothing may be run from, for one
        raise NotCompiled(f"what was compiled does not load: {error}") from error
