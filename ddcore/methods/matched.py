"""What methods that match trajectories share: from a first set and experts' paths to a set that follows them."""

import json
import math
from dataclasses import asdict
from typing import Any

import torch

from ddcore.data.images import Images, Normaliser
from ddcore.experts.sgd import Regression
from ddcore.experts.store import Trajectories
from ddcore.matching.cores import Core
from ddcore.matching.explicit import core_of
from ddcore.matching.looks import Looks
from ddcore.matching.loop import State, match
from ddcore.matching.memory import free_bytes
from ddcore.matching.outer import OuterLoss
from ddcore.matching.precision import guarded, half_core, set_precision
from ddcore.matching.windows import Pace, Windows
from ddcore.methods.inputs import Material
from ddcore.networks.flat import FlatNetwork, build_student
from ddcore.specs import ImprovedSpec, MatchingSpec, StudentSpec
from ddcore.synthetic import SyntheticSet, load_synthetic
from ddcore.task import Task, generator
from ddcore.threads import threads_for

RESIDENT = 0.25  # of a GPU's free memory, for the experts' trajectories


def match_paths(task: Task, material: Material, spec: MatchingSpec) -> SyntheticSet:
    """Start from the set of the step `init` and move its images, targets and rate; writes `history.json`."""
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
    frugal = task.resources.short_of_memory
    experts = Trajectories(task.inputs["experts"], task.device, 0 if frugal else int(RESIDENT * free_bytes(task.device)))
    with threads_for(network, min(spec.batch_size, len(begun.images))):
        core = _core(network, experts, spec, state, task)
        real = _real(core, material, task.device) if isinstance(spec, ImprovedSpec) and (spec.functional or spec.looks) else None
        pace = _pace(spec, task, len(material.images))
        windows, looks = Windows(experts, spec, pace), _looks(core, spec, real, task)
        curves = match(OuterLoss(core, spec, real), windows, spec, state, task.work, task.reporter, looks, frugal)
    (task.out / "history.json").write_text(json.dumps(curves))
    skipped, beyond = (int(count) for count in state.skipped)
    if skipped:
        task.reporter.note(f"{skipped} of {spec.iterations} windows were skipped: their loss or gradient was not finite")
    if beyond:
        task.reporter.note(f"{beyond} of {spec.iterations} windows ended beyond the threshold and gave no gradient")
    images, targets, rate = state.best or (state.images, state.targets, state.rate)
    more: dict[str, Any] = {} if pace is None else {"pace": asdict(pace)}
    if state.best is not None:
        more |= {"kept_iteration": state.best_iteration} | ({"real_error": state.least} if math.isfinite(state.least) else {})
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (material.mean, material.std))
    return material.as_set(
        task,
        images.cpu() * std + mean,
        targets.cpu(),
        rate.cpu(),
        begun.indices,
        student=task.params["student"],
        skipped_windows=skipped,
        **more,
    )


def _pace(spec: MatchingSpec, task: Task, images: int) -> Pace | None:
    """How the experts' averages lag, if they are averages and to be read later by it."""
    paced = task.params.get("pace")
    if paced is None or not isinstance(spec, ImprovedSpec):
        return None
    return Pace(paced["decay"], math.ceil(images / min(paced["batch_size"], images)))


def _real(core: Core, material: Material, device: torch.device) -> Regression:
    data = Images(material.images, None, ())
    return Regression.of(data, material.targets, Normaliser.of(material.mean, material.std, device), core, None)


def _looks(core: Core, spec: MatchingSpec, real: Regression | None, task: Task) -> Looks | None:
    if real is None or not isinstance(spec, ImprovedSpec) or not spec.looks:
        return None
    return Looks.of(core, real, task.params["seed"], spec.horizon, spec.batch_size, spec.inner_momentum)


def _core(network: FlatNetwork, experts: Trajectories, spec: MatchingSpec, state: State, task: Task) -> Core:
    """The core in the precision that the spec asks for; bfloat16 is tried on the first batch, at an expert's start, along its way."""
    core = core_of(network, task.device)
    if set_precision(spec.precision, task.device) != "bf16":
        return core
    start, goal = (experts.row(0, epoch).to(task.device) for epoch in (0, spec.expert_epochs))
    x, y = state.images[: spec.batch_size], state.targets[: spec.batch_size]
    return guarded(core, half_core(core), start, x, y, goal - start, task.reporter.note)
