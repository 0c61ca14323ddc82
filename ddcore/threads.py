"""How many CPU threads a small job is worth: below some size they cost more to wake than they do."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from ddcore.networks.flat import FlatNetwork

SMALL = 1 << 17  # numbers in the largest array at work; measured: no gain from a second thread below, 1.7 times the CPU time


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
