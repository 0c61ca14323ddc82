"""High-loss: the images that experts regress worst after one epoch (MKDT, 2410.02116, section 4.3)."""

import torch

from ddcore.data.images import normalise
from ddcore.experts.store import Trajectories
from ddcore.methods.inputs import Material
from ddcore.networks.flat import build_student
from ddcore.specs import StudentSpec
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task

CHUNK = 1024


def distill(task: Task, material: Material) -> SyntheticSet:
    scores = expert_losses(task, material)
    chosen = scores.argsort(descending=True, stable=True)[: task.params["num_images"]]
    return material.subset(task, chosen)


def expert_losses(task: Task, material: Material) -> torch.Tensor:
    """Mean over experts of each image's squared error after the first epoch, float64 [n]."""
    experts = Trajectories(task.inputs["experts"])
    shape = tuple(material.images.shape[1:])
    network = build_student(StudentSpec(**task.params["student"]), shape, material.targets.shape[1]).to(task.device)
    images, targets = material.images.to(task.device), material.targets.to(task.device)
    total = torch.zeros(len(images), dtype=torch.float64, device=task.device)
    with torch.no_grad():
        for expert in range(experts.num_experts):
            task.reporter.progress(expert, experts.num_experts, "experts", "scoring images by their loss")
            theta = experts.row(expert, 1).to(task.device)
            for at in range(0, len(images), CHUNK):
                part = slice(at, at + CHUNK)
                out = network(theta, normalise(images[part], material.mean, material.std))
                total[part] += (out - targets[part]).square().mean(1).double()
    return (total / experts.num_experts).cpu()
