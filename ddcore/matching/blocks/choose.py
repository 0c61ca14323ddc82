"""Which implementation of the block serves a device."""

import torch

from ddcore.matching.blocks.compiled import compiled_blocks
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.blocks.interface import Blocks
from ddcore.matching.blocks.native import native_blocks
from ddcore.matching.blocks.triton import triton_blocks


def blocks_for(device: torch.device) -> Blocks:
    """The fastest implementation that works on `device`; each that does not says so once in the log."""
    match device.type:
        case "cuda":
            return triton_blocks(device) or compiled_blocks(device) or EagerBlocks()
        case "cpu":
            return native_blocks() or EagerBlocks()
    return EagerBlocks()
