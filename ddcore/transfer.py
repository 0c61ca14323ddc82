"""Copies from host memory to the device that the host does not wait for."""

import torch


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` (on the CPU) on `device`; itself if that is the CPU.

    On CUDA it goes by way of pinned memory: from pageable memory the copy waits until all work queued before it is done.
    PyTorch keeps the pinned copy until the transfer is over.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
