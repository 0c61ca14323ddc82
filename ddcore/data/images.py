"""A data set in memory: one uint8 tensor of images, perhaps labels; and the normalisation of its pixels."""

import json
from collections.abc import Sequence
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


def mean_std(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel of images uint8 [n, c, h, w], in 0..1 pixel units; a constant channel has deviation 1."""
    channels = images.shape[1]
    count = images.numel() // channels
    total = torch.zeros(channels, dtype=torch.float64)
    squares = torch.zeros(channels, dtype=torch.float64)
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK].double() / 255
        total += part.sum((0, 2, 3)).cpu()
        squares += part.square().sum((0, 2, 3)).cpu()
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-6, std, torch.ones_like(std))
    return mean.tolist(), std.tolist()


def normalise(batch: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Images [b, c, h, w], uint8 or float in 0..1, as float32 of mean 0 and deviation 1 over the data set they were measured on."""
    pixels = batch.float() / 255 if batch.dtype == torch.uint8 else batch
    shape = (1, len(mean), 1, 1)
    centre = torch.tensor(mean, dtype=pixels.dtype).view(shape).to(pixels.device)
    spread = torch.tensor(std, dtype=pixels.dtype).view(shape).to(pixels.device)
    return (pixels - centre) / spread
