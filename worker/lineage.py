"""Ties the life of a process to that of its parent, so that no kill -9 leaves a runner behind on an accelerator."""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_LINUX = sys.platform == "linux"


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, process `parent`, dies. Call it in the main thread, right at the start.

    The kernel watches the parent's thread, so the parent must start its children from a thread that lives as long as it does.
    """
    if _LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def watch_parent(parent: int) -> None:
    """The same by polling once a second from a thread, where the kernel offers nothing (macOS). Not for a process that forks."""
    if _LINUX:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
