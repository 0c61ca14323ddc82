"""High-loss: the images that experts regress worst after one epoch (MKDT, 2410.02116, section 4.3)."""

import torch

from ddcore.data.images import normalise
from ddcore.experts.store import Trajectories
from ddcore.ledger import Ledger
from ddcore.methods.inputs import Material
from ddcore.networks.flat import build_student
from ddcore.specs import StudentSpec
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task

CHUNK = 1024
LAYOUT = "high loss 1"  # of checkpoints


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
    ledger = Ledger(task.work, LAYOUT, task.reporter)

    def total_loss() -> torch.Tensor:
        total, done, at = torch.zeros(len(images), dtype=torch.float64, device=task.device), 0, 0
        own = torch.zeros_like(total)
        if found := ledger.resume():
            (total, own), said = (found[0][name].to(task.device) for name in ("total", "own")), found[1]
            done, at = said["experts"], said["at"]
        ledger.hold(lambda: ({"total": total, "own": own}, {"experts": done, "at": at}))
        while done < experts.num_experts:
            task.reporter.progress(done, experts.num_experts, "experts", "scoring images by their loss")
            theta = experts.row(done, 1).to(task.device)
            while at < len(images):
                ledger.offer()
                task.reporter.pulse()
                part = slice(at, at + CHUNK)
                out = network(theta, normalise(images[part], material.mean, material.std))
                own[part] = (out - targets[part]).square().mean(1).double()
                at += CHUNK
            total, own, done, at = total + own, torch.zeros_like(total), done + 1, 0
        return total

    with torch.no_grad():
        return (ledger.once(total_loss) / experts.num_experts).cpu()
