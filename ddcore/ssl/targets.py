"""The targets step: the teacher's features of a data set, standardised per dimension."""

from typing import Any

import torch
from safetensors.torch import save_file

from ddcore.data.images import load_dataset
from ddcore.errors import DdcoreError
from ddcore.ssl.measure import extract_features
from ddcore.ssl.teacher import load_teacher
from ddcore.task import Task

NAME = "targets.safetensors"
_FLAT = 1e-6  # deviation below this part of the largest one is no variation


def compute_targets(task: Task) -> dict[str, Any]:
    """Write targets.safetensors: targets float32 [n, d] of mean 0 and deviation 1, and `mean`, `std` [d] of the features.

    A dimension that does not vary is zero in the targets and has `std` 1. Raises `DdcoreError` if the teacher is below its own
    floor (teacher_collapsed), does not fit its manifest (bad_checkpoint) or was made for images of another shape (missing_input).
    """
    module, manifest = load_teacher(task.input("teacher"))
    data = load_dataset(task.input("dataset")).to(task.device)
    expected = (manifest.in_channels, *manifest.image_size)
    if data.shape != expected:
        raise DdcoreError("missing_input", f"the teacher reads images of shape {expected}, these are {data.shape}", "use its own data set")
    features = extract_features(module.to(task.device), data.images, manifest.mean, manifest.std, task.reporter)
    targets, mean, std = standardise(features)
    tensors = {"targets": targets, "mean": mean, "std": std}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, task.out / NAME)
    flat = int((targets == 0).all(0).sum())
    return {"num_images": len(targets), "target_dim": targets.shape[1], "flat_dimensions": flat}


def standardise(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features [n, d] with mean 0 and (population) deviation 1 in each dimension, and the `mean` and `std` [d] taken out; float32."""
    exact = features.double()
    mean, std = exact.mean(0), exact.std(0, correction=0)
    varies = std > _FLAT * std.max()
    std = torch.where(varies, std, torch.ones_like(std))
    targets = torch.where(varies, (exact - mean) / std, torch.zeros_like(exact))
    return targets.float(), mean.float(), std.float()
