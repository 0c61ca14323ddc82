"""What a network knew at each snapshot of its run: k-NN accuracy, effective rank, and likeness to what it became."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import vector_to_parameters

from ddcore.data.images import Images, Normaliser, mean_std
from ddcore.errors import DdcoreError
from ddcore.events import Reporter
from ddcore.ledger import Once, at_once
from ddcore.networks.backbones import build_backbone
from ddcore.specs import BackboneSpec
from ddcore.ssl.measure import effective_rank, knn_accuracy
from ddcore.ssl.trajectory import Track, read_trajectory
from ddcore.task import generator

BATCH = 500


def per_snapshot(
    teacher_folder: Path,
    data: Images,
    backbone: BackboneSpec,
    sample: int = 2000,
    reporter: Reporter | None = None,
    once: Once = at_once,
) -> list[dict[str, Any]]:
    """Features of `sample` training images under every recorded snapshot, in three figures each; computed on the device of `data`.

    teacher_folder: a teacher step's, with trajectory.safetensors; data: the images it was trained on; backbone: its encoder. The
    images are drawn once, from a fixed seed, and normalised as in training. once: see `ddcore.ledger`.

    Returns a row for each network ("student"; for DINO also "teacher") and snapshot, in order of time:
    {"network", "step", "knn": leave-one-out k-NN accuracy within the sample, percent (None without labels; below a teacher's own
    figure, which has all images to look among), "rank": effective rank of the features, "cka_to_last": `linear_cka` with the
    same network's last snapshot}.

    Snapshots hold no running statistics, so batch normalisation uses those of the sample itself, in random batches of at most
    `BATCH`: the figures of such encoders differ a little from those in evaluation mode.

    Raises `DdcoreError`: missing_input without a readable recording, bad_checkpoint if it is of another network, diverged if
    features are not finite.
    """
    told, (tracks, steps) = reporter or Reporter(), read_trajectory(teacher_folder)
    module = _encoder(backbone, data, tracks["student"].get_shape()[1])
    inputs, labels = _draw(data, sample, told.pulse)

    def features(track: Track, number: int, name: str) -> Tensor:
        vector_to_parameters(track.row(number).to(inputs.device), module.parameters())
        return _features(module, inputs, f"{name} at step {steps[number]}", told.pulse)

    @functools.cache
    def last_of(name: str) -> Tensor:
        return features(tracks[name], len(steps) - 1, name)  # all others are compared with it

    def row(name: str, number: int) -> dict[str, Any]:
        last = last_of(name)
        found = last if number == len(steps) - 1 else features(tracks[name], number, name)
        knn = None if labels is None else knn_accuracy(found, labels, pulse=told.pulse)
        likeness = linear_cka(found, last)
        return {"network": name, "step": int(steps[number]), "knn": knn, "rank": effective_rank(found), "cka_to_last": likeness}

    rows: list[dict[str, Any]] = []
    for name in tracks:
        for number in range(len(steps)):
            told.progress(len(rows), len(tracks) * len(steps), "snapshots", "features")
            rows.append(once(functools.partial(row, name, number)))
    return rows


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Centred kernel alignment of features x [n, d] and y [n, e] of the same n images (1905.00414, section 3), from 0 to 1.

    |X'Y|^2 / (|X'X| |Y'Y|) in Frobenius norms, columns centred; by the equal n x n form <XX', YY'> / (|XX'| |YY'|), whose memory
    does not grow with the width. 1 for features equal but for a rotation, a scale and a shift; 0 where either has no spread.
    """
    first, second = (_kernel(features) for features in (x, y))
    scale = float(first.norm() * second.norm())
    return float((first * second).sum()) / scale if scale > 0 else 0.0


def _kernel(features: Tensor) -> Tensor:
    centred = features.double() - features.double().mean(0)
    return centred @ centred.T


def _encoder(backbone: BackboneSpec, data: Images, parameters: int) -> nn.Module:
    """The encoder in evaluation mode but for its batch normalisation; its own initial parameters will be overwritten."""
    with torch.random.fork_rng(devices=[]):
        module = build_backbone(backbone, data.shape[0], data.shape[1:]).requires_grad_(False)
    own = sum(p.numel() for p in module.parameters())
    if own != parameters:
        detail = f"the snapshots have {parameters} parameters, but {backbone.name} on images of {list(data.shape)} has {own}"
        raise DdcoreError("bad_checkpoint", detail, "give the backbone and the data set that the run was trained with")
    module.to(data.images.device).eval()
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.train()
    return module


def _draw(data: Images, sample: int, pulse: Callable[[], None]) -> tuple[Tensor, Tensor | None]:
    """Normalised images float32 [n, c, h, w] and their labels, in random order: batches of one class would have its statistics."""
    device = data.images.device
    rows = torch.randperm(len(data), generator=generator(0, "snapshots"))[:sample].to(device)
    mean, std = mean_std(data.images, pulse)
    return Normaliser.of(mean, std, device)(data.images[rows]), None if data.labels is None else data.labels[rows]


@torch.no_grad()
def _features(module: nn.Module, inputs: Tensor, whose: str, pulse: Callable[[], None]) -> Tensor:
    batches = inputs.tensor_split(math.ceil(len(inputs) / BATCH))  # of nearly equal size: none too small for statistics
    parts = []
    for batch in batches:
        pulse()
        parts.append(module(batch).float())
    features = torch.cat(parts)
    if not torch.isfinite(features).all():
        raise DdcoreError("diverged", f"the features of the {whose} are not finite", "lower teacher.lr or raise teacher.warmup_epochs")
    return features
