"""`python -m worker.device NAME --parent PID`: notes in the database what the worker NAME computes on, as torch tells it, and ends.

A process of its own, because asking CUDA takes it into use, and neither the supervisor nor the template may.
"""

import argparse
import os
import time

import torch

from ddcore.run import choose_device
from jobs import workers
from jobs.database import connect, sessions
from jobs.settings import get_settings
from worker.lineage import die_with_parent
from worker.patience import patiently

_TRIES = 60  # seconds that the worker's own first report may take


def describe(device: torch.device) -> tuple[str, int | None]:
    """The name of a device, and its memory in bytes; of a CPU, the machine's."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return found.name, found.total_memory
    if device.type == "cpu":
        return "cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return str(device), None


def note(worker: str) -> int:
    """Write it down, as soon as the worker itself has reported; the exit code."""
    settings = get_settings()
    name, memory = describe(choose_device(settings.device))
    engine = connect(settings)
    try:
        for _ in range(_TRIES):
            if patiently(sessions(engine), lambda s: workers.set_device(s, worker, name, memory), _wait):
                return 0
            time.sleep(1)
    finally:
        engine.dispose()
    return 1


def _wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.device", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--parent", type=int, required=True, help="the process to end with")
    args = parser.parse_args()
    die_with_parent(args.parent)
    return note(args.name)


if __name__ == "__main__":
    raise SystemExit(main())
