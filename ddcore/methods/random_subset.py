"""Random: images drawn uniformly without replacement. The control that any method must beat."""

import torch

from ddcore.methods.inputs import Material
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task, generator


def distill(task: Task, material: Material) -> SyntheticSet:
    random = generator(task.params["seed"], "random subset")
    chosen = torch.randperm(len(material.images), generator=random)[: task.params["num_images"]]
    return material.subset(task, chosen)
