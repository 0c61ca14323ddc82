"""A data set in memory: one uint8 tensor of images, perhaps labels; and the normalisation of its pixels."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ddcore.errors import DdcoreError

NAME = "dataset.safetensors"
_CHUNK = 4096  # images a float64 sum holds at once


@dataclass(frozen=True)
class Images:
    """images: uint8 [n, c, h, w]. labels: int64 [n], or None. classes: a name for each label; empty without labels."""

    images: torch.Tensor
    labels: torch.Tensor | None
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def to(self, device: torch.device) -> "Images":
        """The same on `device`, still uint8: a quarter of the memory that floats take."""
        labels = None if self.labels is None else self.labels.to(device)
        return Images(self.images.to(device), labels, self.classes)

    def save(self, path: Path) -> None:
        """Write a safetensors file; equal images and labels give equal bytes."""
        tensors = {"images": self.images.contiguous()}
        if self.labels is not None:
            tensors["labels"] = self.labels.contiguous()
        save_file(tensors, path, metadata={"classes": json.dumps(self.classes)})


def load_dataset(path: Path) -> Images:
    """Read what a dataset step left: `path` is the file or its folder. Raises `DdcoreError` missing_input if it is absent or damaged."""
    file = path / NAME if path.is_dir() else path
    try:
        with safe_open(file, framework="pt") as opened:
            names = set(opened.keys())
            images = opened.get_tensor("images")
            labels = opened.get_tensor("labels") if "labels" in names else None
            classes = tuple(json.loads((opened.metadata() or {}).get("classes", "[]")))
    except (OSError, SafetensorError, ValueError) as error:
        raise DdcoreError("missing_input", f"the data set at {file} cannot be read: {error}", "run its dataset step again") from error
    return Images(images, labels, classes)


def mean_std(images: torch.Tensor, pulse: Callable[[], None] = lambda: None) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel of images uint8 [n, c, h, w], in 0..1 pixel units; a constant channel has deviation 1.

    pulse: called now and then; it may raise.
    """
    channels = images.shape[1]
    count = images.numel() // channels
    total = torch.zeros(channels, dtype=torch.float64)
    squares = torch.zeros(channels, dtype=torch.float64)
    for start in range(0, len(images), _CHUNK):
        pulse()
        part = images[start : start + _CHUNK].double() / 255
        total += part.sum((0, 2, 3)).cpu()
        squares += part.square().sum((0, 2, 3)).cpu()
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-6, std, torch.ones_like(std))
    return mean.tolist(), std.tolist()


@dataclass(frozen=True)
class Normaliser:
    """Pixels to mean 0 and deviation 1, as one multiplication and one addition; its numbers wait on the device.

    All are float32 [1, c, 1, 1]: x becomes `scale` x + `shift` of pixels in 0..1, `byte_scale` x + `shift` of bytes.
    """

    scale: torch.Tensor
    byte_scale: torch.Tensor
    shift: torch.Tensor

    @staticmethod
    def of(mean: Sequence[float], std: Sequence[float], device: torch.device) -> "Normaliser":
        """From each channel's mean and deviation, in 0..1 pixel units."""
        centre, spread = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
        return Normaliser(*(part.float().to(device) for part in (1 / spread, 1 / (255 * spread), -centre / spread)))

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """batch [b, c, h, w]: uint8, or float in 0..1. Returns float32; float64 for a batch of that type."""
        if batch.dtype == torch.uint8:
            return batch.float().mul_(self.byte_scale).add_(self.shift)
        return (batch * self.scale).add_(self.shift)


def normalise(batch: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """`Normaliser` for one batch [b, c, h, w] alone: it waits for the device. Mean and std are those of the data set."""
    return Normaliser.of(mean, std, batch.device)(batch)


class PixelRows:
    """A data set's images, uint8 on their device, of which normalised batches are made: gathered, made floats, scaled and shifted.

    Every image is one row, in the memory order that the network reads, which is many times faster to gather from and to scale.
    """

    def __init__(self, images: torch.Tensor, normaliser: Normaliser, memory_format: torch.memory_format) -> None:
        """images: uint8 [n, c, h, w], on the device of `normaliser`; memory_format: contiguous or channels_last."""
        self._last = memory_format == torch.channels_last
        self._shape = images.shape[1:]
        self._rows = self._flat(images)
        scale, shift = (v.expand(1, *self._shape) for v in (normaliser.byte_scale, normaliser.shift))
        self._scale, self._shift = self._flat(scale), self._flat(shift)

    def __len__(self) -> int:
        return len(self._rows)

    def pixels(self, rows: torch.Tensor) -> torch.Tensor:
        """Images uint8 [b, c, h, w] of the indices `rows` [b]."""
        return self._images(self._rows.index_select(0, rows))

    def batch(self, rows: torch.Tensor) -> torch.Tensor:
        """The same images, normalised: float32 [b, c, h, w] in the memory format."""
        return self._images(torch.addcmul(self._shift, self._rows.index_select(0, rows).float(), self._scale))

    def _flat(self, images: torch.Tensor) -> torch.Tensor:
        return (images.permute(0, 2, 3, 1) if self._last else images).flatten(1).contiguous()

    def _images(self, rows: torch.Tensor) -> torch.Tensor:
        c, h, w = self._shape
        return rows.view(-1, h, w, c).permute(0, 3, 1, 2) if self._last else rows.view(-1, c, h, w)
