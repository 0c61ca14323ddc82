"""The supervisor's hold on its template process (`worker.template`) and on the one runner that it may have started."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time

_TAIL = 32_000  # bytes of a crashed runner's last words that are read
_LONGEST = 4_000  # characters of them that are kept


class Launcher:
    """Starts one runner at a time. Not for threads: the kernel ties the template's life to the thread that starts it."""

    def __init__(self, worker: str = "") -> None:
        """worker: the name under which the template notes what it computes on; none, and it notes nothing."""
        self._worker = worker
        self._template: subprocess.Popen[bytes] | None = None
        self._pending = b""
        # Where runners' output goes; it has no name, so nothing is left behind.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        self._code: int | None = None
        self.pid: int | None = None  # of the runner, once it is known
        self._sign = (0.0, 0.0)  # the log file's time of change, and when (monotonic) it was first seen

    def warm(self) -> None:
        """Have a template loading, so that the next `start` need not wait for it."""
        if self._template is None or self._template.poll() is not None:
            self.close()
            log = self._log.fileno()
            command = [sys.executable, "-m", "worker.template", str(os.getpid()), str(log), *([self._worker] if self._worker else [])]
            self._template = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[log])
            assert self._template.stdout is not None
            os.set_blocking(self._template.stdout.fileno(), False)

    def start(self, step_id: str, attempt: int) -> None:
        """Start the runner of one attempt; nothing else may be running."""
        self.warm()
        self._code, self.pid = None, None
        self._log.truncate(0)
        self._sign = (0.0, time.monotonic())
        self._tell(f"run {step_id} {attempt}")

    def poll(self) -> int | None:
        """The exit code of the runner if it has ended: negative for a signal, and -9 if the template died and took it along.

        If the template ended before it started the runner (`pid` is None), the code is the template's own.
        """
        if self._code is None:
            self._listen()
        return self._code

    def signal(self, number: int) -> None:
        """Send a signal to the runner's process group, if it is still there."""
        self._tell(f"signal {number}")

    def silence(self) -> float:
        """Seconds since the runner last wrote to, or touched, the file that its standard output goes to."""
        changed, now = os.fstat(self._log.fileno()).st_mtime, time.monotonic()
        if changed != self._sign[0]:
            self._sign = (changed, now)
        return now - self._sign[1]

    def last_words(self) -> str:
        """The end of what the runner wrote to its standard output and error."""
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), _TAIL, max(0, size - _TAIL)).decode(errors="replace")
        # Python's fault handler ends with a line of some thousand characters that names every compiled module.
        return "\n".join(line for line in text.splitlines() if not line.startswith("Extension modules:")).strip()[-_LONGEST:]

    def close(self) -> None:
        """End the template, and with it any runner, at once; `poll` then says -9."""
        if self._template is not None:
            self._template.kill()
            self._template.wait()
            for pipe in (self._template.stdin, self._template.stdout):
                assert pipe is not None
                pipe.close()
        self._template, self._pending = None, b""
        self._code = -signal.SIGKILL if self._code is None else self._code

    def _tell(self, line: str) -> None:
        if self._template is None:
            return
        assert self._template.stdin is not None
        try:
            os.write(self._template.stdin.fileno(), f"{line}\n".encode())  # far below what a pipe takes whole
        except BrokenPipeError:
            self._listen()  # it died: poll will say so

    def _listen(self) -> None:
        if self._template is None:
            return
        assert self._template.stdout is not None
        try:
            chunk = os.read(self._template.stdout.fileno(), 65536)
        except BlockingIOError:
            return
        if not chunk:
            if self._code is None and self.pid is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._code = self._template.wait(1.0) or 1
            self.close()
            return
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in lines:
            word, number = line.decode().split()
            if word == "started":
                self.pid = int(number)
            else:
                self._code = int(number)
