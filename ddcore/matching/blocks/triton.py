"""Access to the Triton kernels, which may be imported only where Triton is."""

import functools
import importlib
import logging

import torch

from ddcore.matching.blocks.interface import Blocks

log = logging.getLogger(__name__)


@functools.cache
def triton_blocks(device: torch.device) -> Blocks | None:
    """The blocks as Triton kernels, tried on `device`; None, and one line in the log, where they cannot be had or are wrong."""
    try:
        kernels = importlib.import_module("ddcore.matching.blocks.triton_kernels")
        blocks: Blocks = kernels.tried(device)
    except (ImportError, RuntimeError) as error:
        log.warning("the fused Triton kernels are not used on %s: %s", device, str(error).partition("\n")[0])
        return None
    return blocks
