"""`python -m worker.template`: has imported torch and the engine already, and forks one runner at a time from itself.

Importing them takes seconds of a core; a fork takes milliseconds. Each step still has a process of its own, in a process group of
its own, which ends with the step. Nothing here may start a thread or touch the accelerator: neither survives a fork. Where a
fork of loaded libraries is not safe (macOS) the runner is a fresh interpreter instead.

Speaks lines with `worker.launcher`: reads `run STEP ATTEMPT` and `signal NUMBER`, answers `started PID` and `ended CODE`.
"""

import contextlib
import faulthandler
import gc
import os
import select
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable

from jobs import logs
from jobs.settings import get_settings
from worker import device, runner
from worker.lineage import die_with_parent

_CAN_FORK = sys.platform == "linux"
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # a signal to the whole service is the supervisor's to handle
_TICK = 0.05  # seconds between looks at the runner


def serve(parent: int, log: int, worker: str = "") -> None:
    """Start runners for process `parent` until it closes our standard input, or dies. log: the descriptor their output goes to.

    worker: whose device is to be noted, by a process of its own: asking for it may take the accelerator into use.
    """
    die_with_parent(parent)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    settings = get_settings()
    logs.configure(settings.log_level, settings.log_json, logs.own_stream())
    # BLAS libraries hold threads, which they end before a fork and start again after it: Python's warning is not about them.
    warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
    gc.freeze()  # what is loaded now stays shared with the runners
    child: int | None = None
    asking = _ask_device(worker) if worker else None
    pending = b""
    while os.getppid() == parent:
        if select.select([0], [], [], 1.0 if child is None else _TICK)[0]:
            chunk = os.read(0, 65536)
            if not chunk:
                break
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                child = _obey(line.decode().split(" "), child, log)
        if asking is not None and _ended(asking) is not None:
            asking = None
        if child is not None and (code := _ended(child)) is not None:
            child = None
            _say(f"ended {code}")
    if child is not None:
        _signal_group(child, signal.SIGKILL)


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def _obey(words: list[str], child: int | None, log: int) -> int | None:
    """Carry out one command; the process id of the runner that is there afterwards."""
    match words:
        case ["run", step_id, attempt] if child is None:
            os.lseek(log, 0, os.SEEK_SET)  # the supervisor has emptied it
            child = (
                _fork(lambda: runner.run(step_id, int(attempt)), log) if _CAN_FORK else _spawn("worker.runner", step_id, attempt, log=log)
            )
            _say(f"started {child}")
        case ["signal", number] if child is not None:
            _signal_group(child, int(number))
    return child


def _ask_device(worker: str) -> int:
    return _fork(lambda: device.note(worker), 2) if _CAN_FORK else _spawn("worker.device", worker, log=2)


def _fork(work: Callable[[], int], log: int) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # the child does the same: whoever comes first
            os.setpgid(pid, pid)
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        die_with_parent(parent)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_DFL)
        _redirect(log)
        faulthandler.enable()  # a segmentation fault leaves a traceback in the log
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # never back into the loop above


def _redirect(log: int) -> None:
    """Standard input from nowhere; output and errors to the file `log`, whose end explains a crash."""
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    if log > 2:
        os.close(log)


def _spawn(module: str, *arguments: str, log: int) -> int:
    command = [sys.executable, "-m", module, *arguments, "--parent", str(os.getpid())]
    # Reaped in _ended, by process id, as a forked runner is.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True).pid


def _ended(child: int) -> int | None:
    """The exit code of the runner if it has ended (negative: the signal), with whatever it left in its group killed."""
    pid, status = os.waitpid(child, os.WNOHANG)
    if not pid:
        return None
    _signal_group(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
