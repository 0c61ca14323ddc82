"""Which implementation of the block serves a device."""

import torch

from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.blocks.interface import Blocks
from ddcore.matching.blocks.native import native_blocks


def blocks_for(device: torch.device) -> Blocks:
    """The fastest implementation that works on `device`."""
    return native_blocks() or EagerBlocks()
