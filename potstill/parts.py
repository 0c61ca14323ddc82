"""One part of the local stack: a subprocess in its own process group, with its log, restarted when it dies unasked."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from potstill.errors import PotstillError

MAX_RESTARTS = 3  # within RESTART_WINDOW seconds; a part that dies more often stops the stack
RESTART_WINDOW = 300.0
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Run in the child before exec: ask the kernel for SIGTERM should the stack itself be killed (Linux only)."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, or a word that it is empty."""
    text = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join(text[-lines:]) or "(the log is empty)"


@dataclass
class Part:
    """argv runs in `cwd` with `env`; stdout and stderr go to `log`. grace: seconds between SIGTERM and SIGKILL."""

    name: str
    argv: list[str]
    env: dict[str, str]
    cwd: Path
    log: Path
    grace: float = 5.0
    process: subprocess.Popen[bytes] | None = None
    deaths: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Start the process. It must be called from the main thread: the kernel ties the child to the thread that starts it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def dead(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def failure(self) -> PotstillError:
        """What to tell a person about a part that died: its exit status and the end of its log."""
        assert self.process is not None
        status = self.process.returncode
        how = f"was killed by signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"ended with status {status}"
        return PotstillError(f"the {self.name} {how}; the end of {self.log}:\n{tail(self.log)}")

    def revive(self, say: Callable[[str], None]) -> None:
        """Start a dead part again, with a note; raises `PotstillError` when it has died too often."""
        now = time.monotonic()
        self.deaths = [t for t in self.deaths if now - t < RESTART_WINDOW] + [now]
        if len(self.deaths) > MAX_RESTARTS:
            raise self.failure()
        self.signal(signal.SIGKILL)  # whatever it left of its group
        say(f"note: the {self.name} died and was started again; see {self.log}")
        self.start()

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group; a group that is gone is fine."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                return

    def stop(self) -> None:
        """Ask the process to end, wait `grace` seconds, then end its whole group."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(self.grace)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)
                self.process.wait()
        self.signal(signal.SIGKILL)
        self.process = None
