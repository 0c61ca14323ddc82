"""How many CPU threads to use: what the machine gives, and for small work one, as a second costs more to wake than it does."""

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from ddcore.networks.flat import FlatNetwork

SMALL = 1 << 17  # numbers in the largest array at work; a guess above the sizes measured (10,000 to 65,000: no gain from a second)

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # a container's, as "microseconds period", or "max period"


def cores() -> int:
    """CPU cores that this process may use, at least one: more threads than a container's quota would mostly wait."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        return allowed if quota == "max" else min(allowed, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return allowed


def threads_for(network: FlatNetwork, batch_size: int) -> AbstractContextManager[None]:
    """`threads_worth` of the largest feature map of a batch of `batch_size` images; all threads where it is not known."""
    return threads_worth(SMALL + 1 if network.largest_map is None else network.largest_map * batch_size)


@contextmanager
def threads_worth(numbers: int) -> Iterator[None]:
    """One thread inside, where the arrays at work hold at most SMALL numbers; as many as before on the way out.

    Decided by sizes alone, so that equal specs add in equal order and give equal bits.
    """
    before = torch.get_num_threads()
    if numbers <= SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
