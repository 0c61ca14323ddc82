"""Labelled tasks as the encoder sees them: images brought to the synthetic set's shape and normalisation, and their features."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ddcore.data.images import load_dataset, normalise
from ddcore.errors import DdcoreError
from ddcore.evaluation.draws import split
from ddcore.networks.flat import FlatNetwork
from ddcore.task import generator
from ddcore.threads import threads_for

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
BATCH = 1024
FORWARD = 8  # a pass forward alone is worth a second thread from so many times the size on that training is


Pulse = Callable[[], None]


@dataclass(frozen=True)
class Labelled:
    """images float32 [n, c, h, w], normalised for the encoder; labels int64 [n]; both on the device. names: of the classes."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]

    @property
    def classes(self) -> int:
        return max(len(self.names), int(self.labels.max()) + 1)

    def rows(self, index: Tensor) -> "Labelled":
        index = index.to(self.labels.device)
        return Labelled(self.images[index], self.labels[index], self.names)


def load_labelled(
    folder: Path, shape: tuple[int, int, int], info: dict[str, Any], device: torch.device, pulse: Pulse = lambda: None
) -> Labelled:
    """Read a dataset step's images for an encoder of input `shape` (c, h, w) with the `mean` and `std` of info.

    pulse: called for each batch; it may raise. Raises `DdcoreError` bad_dataset if it has no labels.
    """
    data = load_dataset(folder)
    if data.labels is None:
        raise DdcoreError("bad_dataset", "a downstream dataset has no labels", "name a dataset whose images lie in class folders")
    parts = []
    for part in torch.split(data.images, BATCH):
        pulse()
        parts.append(normalise(fit(part.to(device), shape), info["mean"], info["std"]))
    return Labelled(torch.cat(parts), data.labels.to(device), data.classes)


def load_pair(
    train: Path, test: Path, shape: tuple[int, int, int], info: dict[str, Any], device: torch.device, pulse: Pulse = lambda: None
) -> tuple[Labelled, Labelled]:
    """The two halves of a labelled task. Raises `DdcoreError` bad_dataset also if they do not name the same classes."""
    halves = load_labelled(train, shape, info, device, pulse), load_labelled(test, shape, info, device, pulse)
    if halves[0].names != halves[1].names:
        odd = sorted(set(halves[0].names) ^ set(halves[1].names))[:5]
        raise DdcoreError("bad_dataset", f"train and test name different classes: {', '.join(odd)} are in one only", "name both alike")
    return halves


def load_held_out(
    train: Path, share: float, shape: tuple[int, int, int], info: dict[str, Any], device: torch.device, pulse: Pulse = lambda: None
) -> tuple[Labelled, Labelled]:
    """Training images to fit on, and a stratified `share` of them to score on in place of a test split: the same for every seed and arm."""
    data = load_labelled(train, shape, info, device, pulse)
    rest, held = split(data.labels, share, generator(0, "held out"))
    return data.rows(rest), data.rows(held)


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
def features(network: FlatNetwork, theta: Tensor, images: Tensor, pulse: Pulse = lambda: None) -> Tensor:
    """Penultimate features of normalised images [n, c, h, w]: float32 [n, F]. pulse: called for each batch; it may raise."""
    parts = []
    with threads_for(network, min(BATCH, len(images)) // FORWARD):
        for part in torch.split(images, BATCH):
            pulse()
            parts.append(network.features(theta, part))
    return torch.cat(parts)


@dataclass(frozen=True)
class Seen:
    """Both halves of a task as an encoder sees them; computed when they are first asked for."""

    network: FlatNetwork
    theta: Tensor
    train: Labelled
    test: Labelled
    pulse: Pulse

    @functools.cached_property
    def train_x(self) -> Tensor:
        return features(self.network, self.theta, self.train.images, self.pulse)

    @functools.cached_property
    def test_x(self) -> Tensor:
        return features(self.network, self.theta, self.test.images, self.pulse)
