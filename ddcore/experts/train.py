"""Train one shard of knowledge-distillation experts and keep their parameters at every epoch (MKDT, 2410.02116, section 4.2)."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional

from ddcore.checkpoint import read_checkpoint, write_checkpoint
from ddcore.data.images import Images, Normaliser, load_dataset, mean_std
from ddcore.errors import DdcoreError, Stopped
from ddcore.events import Event, Reporter
from ddcore.experts.sgd import CudaLane, Expert, Lane, Regression, in_flight, start_of
from ddcore.experts.ssl_paths import own_path
from ddcore.experts.store import write_trajectories
from ddcore.matching.cores import Core
from ddcore.matching.explicit import core_of
from ddcore.networks.flat import FlatNetwork, build_student
from ddcore.specs import ExpertsSpec, StudentSpec
from ddcore.ssl.targets import stage_targets, standardise
from ddcore.task import Task
from ddcore.threads import threads_for
from ddcore.transfer import send

LAYOUT = "experts 2"  # of checkpoints
STATE = ("theta", "velocity", "average", "loss_sum", "random", "began")


@dataclass
class Shard:
    """What a shard has finished so far: snapshots [epochs + 1, P] and epoch losses of each whole expert."""

    snapshots: list[torch.Tensor] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)


def train_experts(task: Task) -> dict[str, Any]:
    """Step `experts`: writes `experts.safetensors` (see `ddcore.experts.store`) and `history.json`.

    params: "path" says what experts follow ("final" when absent; see `ddcore.specs.DinoTMSpec`), "same_start" that all begin alike,
    "stage_epochs" over how many epochs the stages are spread (all, when absent).
    """
    spec, student = ExpertsSpec(**task.params["experts"]), StudentSpec(**task.params["student"])
    images = load_dataset(task.input("dataset") / "dataset.safetensors")
    targets = targets_of(task, images)
    mean, std = mean_std(images.images, task.reporter.pulse)
    network = build_student(student, images.shape, targets.shape[1]).to(task.device)
    if task.params.get("path") in ("teacher", "student"):
        shard = _own_paths(task, network, images, targets.shape[1])
    else:
        core = core_of(network, task.device)
        data = Regression.of(images, targets, Normaliser.of(mean, std, task.device), core, spec.augment)
        with threads_for(network, min(spec.batch_size, len(images))):
            shard = _train_shard(task, core, spec, data)
    return _finish(task, shard, spec, {"student": student.model_dump(mode="json"), "mean": mean, "std": std})


def targets_of(task: Task, images: Images) -> torch.Tensor:
    """What experts regress, float32 [n, d]: the finished teacher's targets; for path "labels" one dimension a class, standardised alike."""
    if task.params.get("path") != "labels":
        return load_file(task.input("targets") / "targets.safetensors")["targets"]
    if images.labels is None:
        raise DdcoreError("bad_dataset", "experts were to follow the labels, and the data set has none", "give labels, or another path")
    return standardise(functional.one_hot(images.labels, max(len(images.classes), int(images.labels.max()) + 1)).float())[0]


def _own_paths(task: Task, network: FlatNetwork, images: Images, out_dim: int) -> Shard:
    """Experts that train without labels by the teacher's recipe, one after another."""
    shard, first, count = Shard(), task.params["first"], task.params["count"]
    data = Images(images.images.to(task.device), None, ())  # labels would only be looked at for a curve that is not kept
    for index in range(first, first + count):
        start = start_of(network, task.params["seed"], index, task.params.get("same_start", False))
        part = replace(task, reporter=_part_of(task.reporter, index - first, count))
        snapshots, losses = own_path(part, index, network, start, data, out_dim)
        shard.snapshots.append(snapshots)
        shard.losses.append(losses)
    return shard


def _part_of(reporter: Reporter, place: int, count: int) -> Reporter:
    """Forwards the progress of one of `count` equal runs; their metrics would fall on each other."""

    def sink(event: Event) -> None:
        if event["type"] == "progress":
            whole = event["total"]
            reporter.sink(event | {"done": place * whole + event["done"], "total": count * whole})
        elif event["type"] == "note":
            reporter.note(event["text"])

    return Reporter(sink, reporter.should_stop, checkpoint_seconds=reporter.checkpoint_seconds)


def _train_shard(task: Task, core: Core, spec: ExpertsSpec, data: Regression) -> Shard:
    """All experts of the shard, a few side by side; these are at the same epoch and the same batch."""
    first, count = task.params["first"], task.params["count"]
    shard, group = _resume(task)
    if task.resources.short_of_memory and len(group) > 1:
        group = []  # more than there was room for: they begin again, one at a time
    while (whole := len(shard.losses)) < count:
        if not group:
            most = in_flight(core.network, min(spec.batch_size, len(data.images)), task.device)
            several = 1 if task.resources.short_of_memory else min(most, count - whole)
            seed, alike = task.params["seed"], task.params.get("same_start", False)
            group = [Expert.begin(core.network, spec, seed, first + whole + i, task.device, alike) for i in range(several)]
        _train_group(task, core, spec, data, group, shard)
        shard.snapshots += [torch.stack(expert.snapshots) for expert in group]
        shard.losses += [expert.losses for expert in group]
        group = []
    return shard


def _train_group(task: Task, core: Core, spec: ExpertsSpec, data: Regression, group: list[Expert], shard: Shard) -> None:
    """What is left of the epochs of the experts in flight; their lanes, and all that these hold, are gone afterwards."""
    whole, count, epochs = len(shard.losses), task.params["count"], task.params["epochs"]
    lanes = [(CudaLane if task.device.type == "cuda" else Lane)(core, expert, spec, data) for expert in group]
    try:
        for epoch in range(len(group[0].losses), epochs):
            if stages := task.inputs.get("stages"):
                now = stage_targets(stages[0], epoch, task.params.get("stage_epochs", epochs))
                data.targets.copy_(now)  # in place: graphs of steps read it there
            _train_epoch(task, lanes, data, shard, whole * epochs + epoch * len(group), count * epochs)
    finally:
        for lane in lanes:
            lane.close()


def _train_epoch(task: Task, lanes: list[Lane], data: Regression, shard: Shard, done: int, total: int) -> None:
    """What is left of an epoch of every lane, step by step in turn. done, total: epochs of experts."""
    count, spec, group = len(data.images), lanes[0].spec, [lane.expert for lane in lanes]
    batches = [send(expert.order(count), task.device).split(min(spec.batch_size, count)) for expert in group]
    steps = len(batches[0])
    for lane in lanes:
        lane.begin_epoch()
    for n in range(group[0].step, steps):
        try:
            task.reporter.progress(done * steps + n * len(lanes), total * steps, "expert steps")
        except Stopped:
            _save(task.work, shard, lanes)
            raise
        for lane, own in zip(lanes, batches, strict=True):
            lane.step(own[n])
            lane.expert.step = n + 1
        if task.reporter.checkpoint_due():
            _save(task.work, shard, lanes)
    for lane in lanes:
        lane.end_epoch()
    for expert, loss_sum in zip(group, torch.stack([expert.loss_sum for expert in group]).tolist(), strict=True):
        mean_loss = loss_sum / count
        if not math.isfinite(mean_loss):
            raise DdcoreError(
                "diverged",
                f"an expert's loss became {mean_loss} in epoch {len(expert.losses) + 1}",
                f"lower experts.lr (it was {spec.lr}) or experts.momentum (it was {spec.momentum})",
            )
        expert.end_epoch(mean_loss)


def _finish(task: Task, shard: Shard, spec: ExpertsSpec, facts: dict[str, Any]) -> dict[str, Any]:
    trajectories = torch.stack(shard.snapshots)
    if not torch.isfinite(trajectories).all():
        raise DdcoreError("diverged", "an expert's parameters became infinite in its last step", "lower experts.lr or experts.momentum")
    error = write_trajectories(task.out, trajectories, spec.storage, json.dumps(facts), task.reporter.pulse)
    stored = {"storage_error": error} if error else {}
    (task.out / "history.json").write_text(json.dumps({"first": task.params["first"], "loss": shard.losses, **stored}))
    for epoch in range(len(shard.losses[0])):
        task.reporter.metric("expert_loss", epoch + 1, sum(losses[epoch] for losses in shard.losses) / len(shard.losses))
    moved = (trajectories[:, -1] - trajectories[:, 0]).norm(dim=1).mean()
    final = sum(losses[-1] for losses in shard.losses) / len(shard.losses)
    summary = {"experts": len(shard.losses), "parameters": trajectories.shape[2], "final_loss": final, "mean_displacement": float(moved)}
    return summary | stored


def _save(work: Path, shard: Shard, lanes: list[Lane]) -> None:
    """Between two steps."""
    tensors = {f"whole.{i}": s for i, s in enumerate(shard.snapshots)}
    for i, lane in enumerate(lanes):
        lane.end_epoch()  # so that the expert may be read
        tensors |= {f"{i}.snapshot.{t}": s for t, s in enumerate(lane.expert.snapshots)}
        tensors |= {f"{i}.{name}": tensor for name, tensor in lane.expert.state().items()}
    facts = {"losses": shard.losses, "current": [lane.expert.losses for lane in lanes], "step": lanes[0].expert.step}
    write_checkpoint(work, LAYOUT, tensors, facts)
    for lane in lanes:
        lane.begin_epoch()


def _resume(task: Task) -> tuple[Shard, list[Expert]]:
    found = read_checkpoint(task.work, LAYOUT, task.reporter.note)
    if found is None:
        return Shard(), []
    tensors, facts = found
    shard = Shard([tensors[f"whole.{i}"] for i in range(len(facts["losses"]))], facts["losses"])
    group = []
    for i, losses in enumerate(facts["current"]):
        snapshots = [tensors[f"{i}.snapshot.{t}"] for t in range(len(losses) + 1)]
        state = {name: tensors[f"{i}.{name}"] for name in STATE if f"{i}.{name}" in tensors}
        group.append(Expert.restore(state, snapshots, losses, facts["step"], task.device))
    return shard, group
