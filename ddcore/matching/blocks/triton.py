"""Access to the Triton kernels, which may be imported only where Triton is."""

import functools
import importlib
import logging

from ddcore.matching.blocks.interface import Blocks

log = logging.getLogger(__name__)


@functools.cache
def triton_blocks() -> Blocks | None:
    """The blocks as Triton kernels, for CUDA devices; None, and one line in the log, where Triton cannot be imported."""
    try:
        kernels = importlib.import_module("ddcore.matching.blocks.triton_kernels")
    except ImportError as error:
        log.warning("Triton cannot be imported (%s): the fused kernels for CUDA are not used", error)
        return None
    blocks: Blocks = kernels.TritonBlocks()
    return blocks
