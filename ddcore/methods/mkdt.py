"""MKDT: match the trajectories of knowledge-distillation experts (Joshi, Ni, Mirzasoleiman, ICLR 2025, 2410.02116).

Departures from the authors' code, each of them a repair: snapshots are clones, every image keeps its own target, the gradient is
the exact adjoint in constant graph memory, targets are standardised per dimension, and the last iterate is kept in pixel units.
"""

import json

import torch

from ddcore.experts.store import Trajectories
from ddcore.matching.cores import Core
from ddcore.matching.explicit import core_of
from ddcore.matching.loop import State, match
from ddcore.matching.memory import free_bytes
from ddcore.matching.precision import guarded, half_core, set_precision
from ddcore.methods.inputs import Material
from ddcore.networks.flat import FlatNetwork, build_student
from ddcore.specs import MKDTSpec, StudentSpec
from ddcore.synthetic import SyntheticSet, load_synthetic
from ddcore.task import Task, generator
from ddcore.threads import threads_for

RESIDENT = 0.25  # of a GPU's free memory, for the experts' trajectories


def distill(task: Task, material: Material) -> SyntheticSet:
    """Start from the set of the step `init` and move its images, targets and rate; writes `history.json`."""
    spec = MKDTSpec(**task.params["method"])
    begun = load_synthetic(task.input("init") / "synthetic.safetensors")
    network = build_student(StudentSpec(**task.params["student"]), tuple(begun.images.shape[1:]), begun.targets.shape[1]).to(task.device)
    rate = torch.tensor(spec.initial_rate or task.params["rate"])
    if spec.rates == "per_layer":
        rate = rate.repeat(len(network.layer_sizes))
    state = State.begin(
        spec,
        begun.normalised().to(task.device).contiguous(),
        begun.targets.to(task.device).clone(),
        rate.to(task.device),
        generator(task.params["seed"], "matching"),
    )
    experts = Trajectories(task.inputs["experts"], task.device, int(RESIDENT * free_bytes(task.device)))
    with threads_for(network, min(spec.batch_size, len(begun.images))):
        core = _core(network, experts, spec, state, task)
        curves = match(core, experts, spec, state, task.work, task.reporter)
    (task.out / "history.json").write_text(json.dumps(curves))
    if skipped := int(state.skipped):
        task.reporter.note(f"{skipped} of {spec.iterations} windows were skipped: their loss or gradient was not finite")
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (material.mean, material.std))
    return material.as_set(
        task,
        state.images.cpu() * std + mean,
        state.targets.cpu(),
        state.rate.cpu(),
        begun.indices,
        student=task.params["student"],
        skipped_windows=skipped,
    )


def _core(network: FlatNetwork, experts: Trajectories, spec: MKDTSpec, state: State, task: Task) -> Core:
    """The core in the precision that the spec asks for; bfloat16 is tried on the first batch, at an expert's start, along its way."""
    core = core_of(network, task.device)
    if set_precision(spec.precision, task.device) != "bf16":
        return core
    start, goal = (experts.row(0, epoch).to(task.device) for epoch in (0, spec.expert_epochs))
    x, y = state.images[: spec.batch_size], state.targets[: spec.batch_size]
    return guarded(core, half_core(core), start, x, y, goal - start, task.reporter.note)
