"""How many CPU threads a small network is worth: below some size they cost more to wake than they do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ddcore.networks.flat import FlatNetwork

SMALL = 1 << 17  # floats of a batch's largest feature map; measured: no gain from a second thread below, 1.7 times the CPU time


@contextmanager
def threads_for(network: FlatNetwork, batch_size: int) -> Iterator[None]:
    """One thread inside, where a batch of `batch_size` images makes small feature maps; as many as before on the way out.

    Decided by sizes alone, so that equal specs add in equal order and give equal bits.
    """
    before = torch.get_num_threads()
    if network.largest_map is not None and network.largest_map * batch_size <= SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
