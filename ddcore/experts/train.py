"""Train one shard of knowledge-distillation experts and keep their parameters at every epoch (MKDT, 2410.02116, section 4.2)."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ddcore.checkpoint import read_checkpoint, write_checkpoint
from ddcore.data.images import load_dataset, mean_std, normalise
from ddcore.errors import DdcoreError, Stopped
from ddcore.events import Every
from ddcore.matching.cores import Core
from ddcore.matching.explicit import core_of
from ddcore.networks.flat import FlatNetwork, build_student
from ddcore.specs import ExpertsSpec, StudentSpec
from ddcore.task import Task, generator
from ddcore.threads import threads_for

CHECKPOINT_SECONDS = 60.0


@dataclass
class Shard:
    """What a shard has finished so far: snapshots [epochs + 1, P] and epoch losses of each whole expert."""

    snapshots: list[torch.Tensor] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)


@dataclass
class Expert:
    """One expert in flight. Snapshots are clones: a view would follow the parameters as they move."""

    theta: torch.Tensor
    velocity: torch.Tensor
    average: torch.Tensor
    snapshots: list[torch.Tensor]
    losses: list[float]
    random: torch.Generator


@dataclass(frozen=True)
class Regression:
    """What an expert learns, all on the device: images uint8 [n, c, h, w], their targets [n, d], the normalisation of pixels."""

    images: torch.Tensor
    targets: torch.Tensor
    mean: list[float]
    std: list[float]

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images float32 [b, c, h, w] and targets [b, d]."""
        return normalise(self.images[rows], self.mean, self.std), self.targets[rows]


def train_experts(task: Task) -> dict[str, Any]:
    """Step `experts`: writes `experts.safetensors` (trajectories float32 [count, epochs + 1, P]) and `history.json`."""
    spec, student = ExpertsSpec(**task.params["experts"]), StudentSpec(**task.params["student"])
    data = load_dataset(task.input("dataset") / "dataset.safetensors")
    images = data.images.to(task.device)
    targets = load_file(task.input("targets") / "targets.safetensors")["targets"].to(task.device)
    mean, std = mean_std(data.images)
    network = build_student(student, tuple(images.shape[1:]), targets.shape[1]).to(task.device)
    with threads_for(network, min(spec.batch_size, len(images))):
        shard = _train_shard(task, network, spec, Regression(images, targets, mean, std))
    return _finish(task, shard, student, mean, std)


def _train_shard(task: Task, network: FlatNetwork, spec: ExpertsSpec, data: Regression) -> Shard:
    first, count, epochs = task.params["first"], task.params["count"], task.params["epochs"]
    shard, current = _resume(task.work, network)
    core, saved = core_of(network, task.device), Every(CHECKPOINT_SECONDS)
    for index in range(first + len(shard.snapshots), first + count):
        expert = current or _begin(network, task.params["seed"], index, task.device)
        current = None
        while len(expert.losses) < epochs:
            place = (index - first) * epochs + len(expert.losses), count * epochs
            before = expert.random.get_state()
            try:
                _train_epoch(task, core, expert, spec, data, *place)
            except Stopped:
                expert.random.set_state(before)  # the rest of the expert changes only when an epoch is whole
                _save(task.work, shard, expert)
                raise
            if saved.due():
                _save(task.work, shard, expert)
        shard.snapshots.append(torch.stack(expert.snapshots))
        shard.losses.append(expert.losses)
    return shard


def _begin(network: FlatNetwork, seed: int, index: int, device: torch.device) -> Expert:
    """Expert `index` of the whole run: its stream of randomness does not depend on how experts are split into shards."""
    random = generator(seed, "expert", index)
    theta = network.init(random).to(device)
    return Expert(theta, torch.zeros_like(theta), theta.clone(), [theta.cpu().clone()], [], random)


def _train_epoch(task: Task, core: Core, expert: Expert, spec: ExpertsSpec, data: Regression, done: int, total: int) -> None:
    count = len(data.images)
    order = torch.randperm(count, generator=expert.random).to(data.images.device)
    loss_sum = torch.zeros((), device=data.images.device)
    theta, velocity, average = expert.theta, expert.velocity, expert.average
    batches = order.split(min(spec.batch_size, count))
    for n, batch in enumerate(batches):
        task.reporter.progress(done * len(batches) + n, total * len(batches), "expert steps")
        found = core.gradient(theta, *data.batch(batch))
        velocity = velocity.mul(spec.momentum).add_(found.gradient).add_(theta, alpha=spec.weight_decay)
        theta = theta - spec.lr * velocity
        if spec.ema is not None:
            average = average.lerp(theta, 1.0 - spec.ema)
        loss_sum += found.loss * len(batch)
    expert.theta, expert.velocity, expert.average = theta, velocity, average
    mean_loss = float(loss_sum) / count
    if not math.isfinite(mean_loss):
        raise DdcoreError(
            "diverged",
            f"an expert's loss became {mean_loss} in epoch {len(expert.losses) + 1}",
            f"lower experts.lr (it was {spec.lr}) or experts.momentum (it was {spec.momentum})",
        )
    expert.losses.append(mean_loss)
    expert.snapshots.append((expert.average if spec.ema is not None else expert.theta).cpu().clone())


def _finish(task: Task, shard: Shard, student: StudentSpec, mean: list[float], std: list[float]) -> dict[str, Any]:
    trajectories = torch.stack(shard.snapshots)
    if not torch.isfinite(trajectories).all():
        raise DdcoreError("diverged", "an expert's parameters became infinite in its last step", "lower experts.lr or experts.momentum")
    text = json.dumps({"student": student.model_dump(mode="json"), "mean": mean, "std": std})
    # One entry: the library writes several in an order that changes from run to run.
    save_file({"trajectories": trajectories}, task.out / "experts.safetensors", metadata={"potstill": text})
    (task.out / "history.json").write_text(json.dumps({"first": task.params["first"], "loss": shard.losses}))
    for epoch in range(len(shard.losses[0])):
        task.reporter.metric("expert_loss", epoch + 1, sum(losses[epoch] for losses in shard.losses) / len(shard.losses))
    moved = (trajectories[:, -1] - trajectories[:, 0]).norm(dim=1).mean()
    final = sum(losses[-1] for losses in shard.losses) / len(shard.losses)
    return {"experts": len(shard.losses), "parameters": trajectories.shape[2], "final_loss": final, "mean_displacement": float(moved)}


def _save(work: Path, shard: Shard, expert: Expert) -> None:
    tensors = {f"whole.{i}": s for i, s in enumerate(shard.snapshots)}
    tensors |= {f"snapshot.{i}": s for i, s in enumerate(expert.snapshots)}
    tensors |= {"theta": expert.theta, "velocity": expert.velocity, "average": expert.average, "random": expert.random.get_state()}
    write_checkpoint(work, tensors, {"losses": shard.losses, "current": expert.losses})


def _resume(work: Path, network: FlatNetwork) -> tuple[Shard, Expert | None]:
    found = read_checkpoint(work)
    if found is None:
        return Shard(), None
    tensors, facts = found
    device = next(network.module.parameters()).device
    shard = Shard([tensors[f"whole.{i}"] for i in range(len(facts["losses"]))], facts["losses"])
    snapshots = [tensors[f"snapshot.{i}"] for i in range(len(facts["current"]) + 1)]
    random = torch.Generator()
    random.set_state(tensors["random"])
    theta, velocity, average = (tensors[name].to(device) for name in ("theta", "velocity", "average"))
    return shard, Expert(theta, velocity, average, snapshots, facts["current"], random)
