"""The targets step: the teacher's features of a data set, standardised per dimension."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import vector_to_parameters

from ddcore.data.images import Images, load_dataset, normalise
from ddcore.errors import DdcoreError
from ddcore.ledger import Ledger
from ddcore.ssl.measure import extract_features
from ddcore.ssl.teacher import Manifest, load_teacher
from ddcore.ssl.trajectory import count_snapshots, teacher_snapshot
from ddcore.task import Task, generator

NAME = "targets.safetensors"
LAYOUT = "targets 1"  # of checkpoints
BATCH, BATCHES = 500, 20  # images that running statistics are measured on
_FLAT = 1e-6  # deviation below this part of the largest one is no variation


def compute_targets(task: Task) -> dict[str, Any]:
    """Write targets.safetensors: targets float32 [n, d] of mean 0 and deviation 1, and `mean`, `std` [d] of the features.

    params: {"stages": k}, if at all: then, in place of those, `stage-1` .. `stage-k`, each [n, d] and standardised by itself: the
    targets of a DINO teacher as it was at k evenly spaced moments of its run, the last of them the finished one.
    A dimension that does not vary is zero in the targets and has `std` 1. Raises `DdcoreError` if the teacher is below its own
    floor (teacher_collapsed), does not fit its manifest (bad_checkpoint) or was made for images of another shape (missing_input).
    """
    module, manifest = load_teacher(task.input("teacher"))
    data = load_dataset(task.input("dataset")).to(task.device)
    expected = (manifest.in_channels, *manifest.image_size)
    if data.shape != expected:
        raise DdcoreError("missing_input", f"the teacher reads images of shape {expected}, these are {data.shape}", "use its own data set")
    module = module.to(task.device)
    ledger = Ledger(task.work, LAYOUT, task.reporter)
    if stages := task.params.get("stages"):
        return _write_stages(task, module, manifest, data, stages, ledger)
    features = extract_features(module, data.images, manifest.mean, manifest.std, task.reporter, ledger)
    targets, mean, std = standardise(features)
    tensors = {"targets": targets, "mean": mean, "std": std}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, task.out / NAME)
    flat = int((targets == 0).all(0).sum())
    return {"num_images": len(targets), "target_dim": targets.shape[1], "flat_dimensions": flat}


def _write_stages(task: Task, module: nn.Module, manifest: Manifest, data: Images, stages: int, ledger: Ledger) -> dict[str, Any]:
    """The last stage is the module as it is; the others are snapshots of the run, whose running statistics are measured anew."""
    folder, found = task.input("teacher"), dict[str, torch.Tensor]()
    count = count_snapshots(folder)
    last = extract_features(module, data.images, manifest.mean, manifest.std, task.reporter, ledger)
    found[f"stage-{stages}"] = standardise(last)[0].cpu().contiguous()
    for stage in range(1, stages):
        if not ledger.ahead():  # else an earlier attempt has found these features
            place = round(stage * (count - 1) / stages)
            vector_to_parameters(teacher_snapshot(folder, place).to(task.device), module.parameters())
            _remeasure(module, data, manifest, task.reporter.pulse)
        features = extract_features(module, data.images, manifest.mean, manifest.std, task.reporter, ledger)
        found[f"stage-{stage}"] = standardise(features)[0].cpu().contiguous()
    save_file(found, task.out / NAME)
    return {"num_images": len(last), "target_dim": last.shape[1], "stages": stages}


@torch.no_grad()
def _remeasure(module: nn.Module, data: Images, manifest: Manifest, pulse: Callable[[], None]) -> None:
    """Running statistics, which snapshots do not hold: the mean of those of whole batches of `data`, as it is."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    order = torch.randperm(len(data), generator=generator(0, "statistics")).to(data.images.device)
    whole = max(1, min(len(data) // BATCH, BATCHES))  # a rest of few images has statistics of few images, or none
    for rows in order.split(BATCH)[:whole]:
        pulse()
        module(normalise(data.images[rows], manifest.mean, manifest.std))
    module.eval()


def stage_targets(folder: Path, epoch: int, epochs: int) -> torch.Tensor:
    """Targets [n, d] of epoch `epoch` (from 0): k stages share the first `epochs` epochs as evenly as can be, the last goes on after."""
    with safe_open(folder / NAME, framework="pt") as file:
        stages = len(file.keys())
        found: torch.Tensor = file.get_tensor(f"stage-{min(stages, 1 + epoch * stages // epochs)}")
    return found


def standardise(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features [n, d] with mean 0 and (population) deviation 1 in each dimension, and the `mean` and `std` [d] taken out; float32."""
    exact = features.double()
    mean, std = exact.mean(0), exact.std(0, correction=0)
    varies = std > _FLAT * std.max()
    std = torch.where(varies, std, torch.ones_like(std))
    targets = torch.where(varies, (exact - mean) / std, torch.zeros_like(exact))
    return targets.float(), mean.float(), std.float()
