"""Labelled tasks as the encoder sees them: images brought to the synthetic set's shape and normalisation, and their features."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ddcore.data.images import load_dataset
from ddcore.errors import DdcoreError
from ddcore.networks.flat import FlatNetwork

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
BATCH = 1024


@dataclass(frozen=True)
class Labelled:
    """images float32 [n, c, h, w], normalised for the encoder; labels int64 [n]; both on the device. classes: how many there are."""

    images: Tensor
    labels: Tensor
    classes: int

    def rows(self, index: Tensor) -> "Labelled":
        index = index.to(self.labels.device)
        return Labelled(self.images[index], self.labels[index], self.classes)


def load_labelled(folder: Path, shape: tuple[int, int, int], info: dict[str, Any], device: torch.device) -> Labelled:
    """Read a dataset step's images for an encoder of input `shape` (c, h, w) with the `mean` and `std` of info.

    Raises `DdcoreError` bad_dataset if it has no labels.
    """
    data = load_dataset(folder / "dataset.safetensors")
    if data.labels is None:
        raise DdcoreError("bad_dataset", "a downstream dataset has no labels", "name a dataset whose images lie in class folders")
    mean, std = (torch.tensor(info[name], device=device).view(1, -1, 1, 1) for name in ("mean", "std"))
    parts = [(fit(part.to(device), shape) - mean) / std for part in torch.split(data.images, BATCH)]
    labels = data.labels.to(device)
    return Labelled(torch.cat(parts), labels, max(len(data.classes), int(labels.max()) + 1))


def fit(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """uint8 images [n, c, h, w] as float32 in 0..1 with `shape`: grey to RGB by repetition, RGB to grey by luma, size bilinear."""
    channels, height, width = shape
    out = images.float() / 255
    if out.shape[1] != channels:
        if {out.shape[1], channels} != {1, 3}:
            raise DdcoreError(
                "bad_dataset", f"images of {out.shape[1]} channels do not fit an encoder of {channels}", "use grey or RGB images"
            )
        out = out.expand(-1, 3, -1, -1) if channels == 3 else torch.einsum("nchw,c->nhw", out, out.new_tensor(LUMA)).unsqueeze(1)
    if out.shape[2:] != (height, width):
        out = interpolate(out, (height, width), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return out.contiguous()


@torch.no_grad()
def features(network: FlatNetwork, theta: Tensor, images: Tensor) -> Tensor:
    """Penultimate features of normalised images [n, c, h, w]: float32 [n, F]."""
    return torch.cat([network.features(theta, part) for part in torch.split(images, BATCH)])
