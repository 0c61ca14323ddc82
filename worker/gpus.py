"""Which GPU belongs to which pool child, found without torch: asking CUDA would take every one of them into use."""

import os
import re
import subprocess
from collections.abc import Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"
PINNED = ("auto", "cuda")  # settings of the device that leave the choice of the GPU to us
_PATIENCE = 30.0  # seconds: the driver may have to load first
_LISTED = re.compile(r"^\s*(GPU|MIG)\b.*\(UUID: ([^)]+)\)\s*$")


def visible() -> list[str]:
    """The GPUs that this process may use, each as CUDA_VISIBLE_DEVICES names it: those it lists, if it is set, else all there are.

    A GPU that is divided (MIG) counts as its parts. None without NVIDIA's driver.
    """
    given = os.environ.get(VISIBLE)
    if given is None:
        return _all()
    names = [name.strip() for name in given.split(",")]
    # CUDA reads the list as far as its first name that names nothing.
    return names[: next((n for n, name in enumerate(names) if not re.match(r"\d|GPU-|MIG-", name)), len(names))]


def _all() -> list[str]:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found: list[list[str]] = []
    for kind, uuid in (match.groups() for match in map(_LISTED.match, done.stdout.splitlines()) if match):
        if kind == "GPU":
            found.append([uuid])
        elif found:
            found[-1].append(uuid)
    return [name for gpu in found for name in (gpu[1:] or gpu)]


def pin(gpus: Sequence[str], child: int, *, wanted: bool) -> str | None:
    """Leave this process, and those that it starts, one GPU: that of pool child number `child`, from 0; returns its name.

    Who comes in a child's place has its number, and so its GPU. Two share one only where there are more children than GPUs. wanted:
    whether the worker runs steps that want one; else it leaves them all to those that do.
    """
    own = gpus[child % len(gpus)] if gpus and wanted else None
    if gpus:
        os.environ[VISIBLE] = own or ""
    return own
