"""What every method is given: the real images, their targets, and the way from chosen images to a set."""

from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file

from ddcore.data.images import load_dataset, mean_std
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task


@dataclass(frozen=True)
class Material:
    """images uint8 [n, c, h, w]; targets float32 [n, d], standardised; mean and std [c] of the pixels in 0..1 units."""

    images: torch.Tensor
    targets: torch.Tensor
    mean: list[float]
    std: list[float]

    @staticmethod
    def of(task: Task) -> "Material":
        data = load_dataset(task.input("dataset") / "dataset.safetensors")
        targets = load_file(task.input("targets") / "targets.safetensors")["targets"]
        return Material(data.images, targets, *mean_std(data.images, task.reporter.pulse))

    def subset(self, task: Task, indices: torch.Tensor) -> SyntheticSet:
        """The real images at `indices` [m] with their targets, at the rate the experts learned with."""
        images = self.images[indices].float() / 255.0
        return self.as_set(task, images, self.targets[indices].clone(), torch.tensor(float(task.params["rate"])), indices)

    def as_set(
        self, task: Task, images: torch.Tensor, targets: torch.Tensor, rate: torch.Tensor, indices: torch.Tensor, **more: Any
    ) -> SyntheticSet:
        """A set from images [m, c, h, w] in pixel units, targets [m, d] and the learned rate."""
        info = {
            "method": task.params["method"],
            "mean": self.mean,
            "std": self.std,
            "image_range": [float(images.min()), float(images.max())],
            **more,
        }
        return SyntheticSet(images, targets, rate, indices, info)
