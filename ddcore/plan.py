"""From a spec to the graph of steps that compute it, written once and torch-free.

A step is named, in the end, by its key: the sha256 of all that determines its output. Two jobs whose steps have equal keys share
the work. Whatever does not change the output (names, job, machine) stays out of `params`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ddcore.checks import DatasetFacts, as_distillation, check_distill, check_evaluate, check_observe, digest
from ddcore.errors import SpecError
from ddcore.lag import epochs_to_record
from ddcore.specs import (
    DinoTMSpec,
    DistillSpec,
    EvaluateSpec,
    ExpertPath,
    ImprovedSpec,
    MatchingSpec,
    MeasureSpec,
    MethodSpec,
    ObserveSpec,
    Spec,
)

# Raise a number when a change makes that kind of step compute something else: old results are then no longer reused.
STEP_VERSION: dict[str, int] = {
    "dataset": 1,
    "teacher": 2,
    "targets": 1,
    "experts": 2,
    "distill": 2,
    "export": 1,
    "figures": 3,
    "tune": 2,
    "evaluate": 2,
    "report": 1,
    "ranking": 1,
    "observe": 2,
}

SUBSET_HORIZON = 80  # pre-training steps for a set that was selected, not matched: MKDT's own 40 steps, over two windows


def engine_digest() -> str:
    """Names what this engine computes: two with one digest compute the same for every kind of step."""
    return digest(STEP_VERSION)[:12]


def step_key(kind: str, params: dict[str, Any], inputs: Mapping[str, Iterable[str]]) -> str:
    """What this engine calls the output of a step. inputs: role -> keys of the input steps, in order."""
    keys = {role: list(names) for role, names in inputs.items()}
    return digest({"kind": kind, "version": STEP_VERSION[kind], "params": params, "inputs": keys})


@dataclass(frozen=True)
class Step:
    """One unit of work. inputs: role -> names of earlier steps, in order. name is unique within its plan only."""

    name: str
    kind: str
    params: dict[str, Any]
    inputs: dict[str, tuple[str, ...]]
    key: str
    queue: str = "gpu"  # "gpu": wants the accelerator; "cpu": does not; "io": mostly reads and writes


@dataclass
class Plan:
    """Steps in an order in which they can run; adding a step with a name that is taken returns the one there."""

    steps: dict[str, Step] = field(default_factory=dict)

    def add(self, name: str, kind: str, params: dict[str, Any], inputs: Mapping[str, Iterable[str]] = {}, queue: str = "gpu") -> str:
        if name not in self.steps:
            roles = {role: tuple(names) for role, names in inputs.items()}
            keys = {role: [self.steps[n].key for n in names] for role, names in roles.items()}
            self.steps[name] = Step(name, kind, params, roles, step_key(kind, params, keys), queue)
        return name

    def __iter__(self) -> Any:
        return iter(self.steps.values())

    def __len__(self) -> int:
        return len(self.steps)


def _dump(spec: Spec, *leave_out: str) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude=set(leave_out))


def add_dataset(plan: Plan, facts: DatasetFacts) -> str:
    return plan.add(f"dataset-{facts.digest[:8]}", "dataset", {"source": facts.source}, queue="io")


def plan_dataset(facts: DatasetFacts) -> Plan:
    """The one step that turns an upload or a built-in name into a tensor file."""
    plan = Plan()
    add_dataset(plan, facts)
    return plan


def expert_epochs(spec: DistillSpec, num_images: int) -> int:
    """How many epochs an expert must run: only as many as matching reads (one, for the high-loss score, if nothing is matched)."""
    method = spec.method
    if not isinstance(method, MatchingSpec):
        return 1
    epoch_steps = math.ceil(num_images / min(spec.experts.batch_size, num_images))
    return epochs_to_record(method.max_start_epoch + method.expert_epochs, averaged(spec), epoch_steps)


def averaged(spec: DistillSpec) -> float | None:
    """The decay of the experts' averaged paths, if matching reads them later by their lag."""
    compensated = isinstance(spec.method, ImprovedSpec) and spec.method.lag and path_of(spec) in ("final", "staged")
    return spec.experts.ema if compensated else None


def path_of(spec: DistillSpec) -> ExpertPath:
    """What the experts of a distillation follow; see `DinoTMSpec.path`."""
    return spec.method.path if isinstance(spec.method, DinoTMSpec) else "final"


def horizon(spec: DistillSpec) -> int:
    """SGD steps of pre-training that the matched windows cover: windows laid end to end up to the last matched epoch."""
    method = spec.method
    if not isinstance(method, MatchingSpec):
        return SUBSET_HORIZON
    return method.horizon


def _teacher_and_targets(plan: Plan, spec: DistillSpec, facts: DatasetFacts) -> tuple[str, str]:
    dataset = add_dataset(plan, facts)
    _teacher(plan, spec, dataset)
    return dataset, _targets(plan, dataset)


def _teacher(plan: Plan, spec: DistillSpec, dataset: str) -> str:
    return plan.add("teacher", "teacher", {"teacher": _dump(spec.teacher), "seed": spec.seed}, {"dataset": [dataset]})


def _targets(plan: Plan, dataset: str) -> str:
    return plan.add("targets", "targets", {}, {"dataset": [dataset], "teacher": ["teacher"]})


def _experts(
    plan: Plan, spec: DistillSpec, facts: DatasetFacts, path: ExpertPath | Literal["labels"], epochs: int, same_start: bool = False
) -> list[str]:
    """Shards of experts; those of the finished teacher's targets may go by another name beside the ones that are matched."""
    dataset, experts = add_dataset(plan, facts), spec.experts
    inputs, name = {"dataset": [dataset], "targets": ["targets"]}, "scorers" if path == "final" != path_of(spec) else "experts"
    more: dict[str, Any] = {} if path == "final" else {"path": path}
    if same_start:
        more["same_start"] = True
    if path == "staged" and isinstance(spec.method, DinoTMSpec):
        stages = {"dataset": [dataset], "teacher": ["teacher"]}
        inputs["stages"] = [plan.add("stages", "targets", {"stages": spec.method.stages}, stages)]
        # Not all epochs: averaged paths run on for their lag, and what is read of them ends before it.
        more["stage_epochs"] = spec.method.max_start_epoch + spec.method.expert_epochs
    elif path in ("teacher", "student"):
        more["teacher"] = _dump(spec.teacher)
    names = []
    for shard, first in enumerate(range(0, experts.num, experts.per_shard)):
        params = {
            "experts": _dump(experts, "num", "per_shard"),
            "student": _dump(spec.student),
            "epochs": epochs,
            "first": first,
            "count": min(experts.per_shard, experts.num - first),
            "seed": spec.seed,
        }
        names.append(plan.add(f"{name}-{shard}", "experts", params | more, inputs))
    return names


def _set(plan: Plan, name: str, spec: DistillSpec, facts: DatasetFacts, method: MethodSpec | dict[str, Any], seed: int) -> str:
    """Add the step that makes a set of images and targets by `method`, with whatever that method reads before it."""
    fields = method if isinstance(method, dict) else _dump(method)
    inputs: dict[str, list[str]] = {"dataset": [add_dataset(plan, facts)], "targets": ["targets"]}
    params: dict[str, Any] = {"method": fields, "num_images": spec.num_images, "seed": seed, "rate": spec.experts.lr}
    matches = isinstance(method, MatchingSpec)
    if matches or fields["name"] == "high_loss":
        path = path_of(spec)
        scored = path == "final" or matches  # a high-loss score is that of the finished teacher's targets
        inputs["experts"] = _experts(plan, spec, facts, path if scored else "final", expert_epochs(spec, facts.num_images) if scored else 1)
        params["student"] = _dump(spec.student)
    if matches:
        inputs["init"] = [_set(plan, f"init-{fields['init']}", spec, facts, {"name": fields["init"]}, seed)]
        if decay := averaged(spec):
            params["pace"] = {"decay": decay, "batch_size": spec.experts.batch_size}
    return plan.add(name, "distill", params, inputs, queue="gpu" if "experts" in inputs else "cpu")


def plan_distill(spec: DistillSpec, facts: DatasetFacts) -> Plan:
    """Steps of a distillation; the last three are `distill`, `export` and `figures`. Raises `SpecError`."""
    if problems := check_distill(spec, facts):
        raise SpecError(problems)
    plan = Plan()
    dataset, targets = _teacher_and_targets(plan, spec, facts)
    made = _set(plan, "distill", spec, facts, spec.method, spec.seed)
    plan.add("export", "export", {}, {"set": [made]}, queue="io")
    shards = [s.name for s in plan if s.kind == "experts" and s.name.startswith("experts")]
    seen = {"dataset": [dataset], "teacher": ["teacher"], "targets": [targets], "experts": shards, "set": [made]}
    plan.add("figures", "figures", {"student": _dump(spec.student)}, seen, queue="cpu")
    return plan


def plan_evaluate(spec: EvaluateSpec, distill: DistillSpec, facts: DatasetFacts, downstream: Mapping[str, DatasetFacts]) -> Plan:
    """Steps of an evaluation; the last is `report`. facts: of the distilled dataset; downstream: by the name the spec uses.

    The steps of the distillation are part of the plan: they are found done, or done again if their artifacts are gone.
    """
    problems = check_distill(distill, facts) + check_evaluate(spec, distill, facts, downstream)
    if problems:
        raise SpecError(problems)
    plan = Plan()
    measured = add_measurement(plan, spec, distill, facts, downstream)
    params = {"tasks": task_names(spec)} | _validation(spec)
    seen = {"cells": measured.cells, "rates": measured.rates, "teacher": ["teacher"], "set": [measured.made]}
    plan.add("report", "report", params, seen, queue="cpu")
    return plan


@dataclass(frozen=True)
class Measurement:
    """Names of the steps that make a set and score it: the set, the tuned rates (or none), the cells by network, then seed."""

    made: str
    rates: list[str]
    cells: list[str]


def add_measurement(
    plan: Plan, spec: MeasureSpec, distill: DistillSpec, facts: DatasetFacts, downstream: Mapping[str, DatasetFacts]
) -> Measurement:
    """Add the steps of a distillation and of its cells to an empty plan; what the arguments are, `plan_evaluate` says."""
    dataset, _ = _teacher_and_targets(plan, distill, facts)
    made = _set(plan, "distill", distill, facts, distill.method, distill.seed)
    tasks = {"downstream_train": [add_dataset(plan, downstream[task.train]) for task in spec.downstream]}
    if spec.validation is None:
        tasks["downstream_test"] = [add_dataset(plan, downstream[task.test]) for task in spec.downstream]
    rated = [b for b in spec.baselines if b != "none"]
    shared = {
        "arms": ["synthetic", *rated],
        "pretrain": {**_dump(spec.pretrain, "lr_grid"), "steps": spec.pretrain.steps or horizon(distill)},
        "probe": spec.probe,
        **_validation(spec),
    }

    def sets(seed: int) -> list[str]:
        """One set of images for each arm that has any, `distill` first; k-means and random draws differ from seed to seed."""
        own = {"random": f"random-{seed}", "k_means": f"k_means-{seed}", "high_loss": "high_loss"}
        return [made] + [_set(plan, own[b], distill, facts, {"name": b}, seed if b != "high_loss" else distill.seed) for b in rated]

    networks = [_dump(network) for network in spec.networks or (distill.student,)]
    rates: list[str] = []
    if spec.pretrain.lr is None and rated:
        seed = spec.seed + 500_000  # not a seed that any cell uses
        params = shared | {"grid": list(spec.pretrain.lr_grid), "network": networks[0], "seed": seed}
        seen = {"dataset": [dataset], "sets": sets(seed), "downstream_train": tasks["downstream_train"][:1]}
        rates = [plan.add("tune", "tune", params, seen)]
    cells = []
    for n, network in enumerate(networks):
        for seed in range(spec.seed, spec.seed + spec.seeds):
            params = shared | {
                "untrained": "none" in spec.baselines,
                "rounding": spec.rounding,
                "network": network,
                "seed": seed,
                "tasks": len(spec.downstream),
                "label_fractions": list(spec.label_fractions),
                "label_draws": spec.label_draws,
                "knn": spec.knn,
            }
            inputs = {"dataset": [dataset], "sets": sets(seed), "rates": rates, **tasks}
            cells.append(plan.add(f"evaluate-{n}-{seed}", "evaluate", params, inputs))
    return Measurement(made, rates, cells)


def _validation(spec: MeasureSpec) -> dict[str, Any]:
    return {} if spec.validation is None else {"validation": spec.validation}


def task_names(spec: MeasureSpec) -> list[str]:
    """How tables name the tasks: what probes are fitted on, and what they are scored on."""
    scored = "" if spec.validation is None else f"{100 * spec.validation:g} % of it held out"
    return [f"{task.train} -> {scored or task.test}" for task in spec.downstream]


def plan_observe(spec: ObserveSpec, facts: DatasetFacts) -> Plan:
    """Steps of an observation; the last is `observe`. Raises `SpecError`.

    The first run is the teacher that any distillation of these settings trains; params of the others say which they are.
    """
    if problems := check_observe(spec, facts):
        raise SpecError(problems)
    plan, distill = Plan(), as_distillation(spec)
    dataset = add_dataset(plan, facts)
    teachers = [_teacher(plan, distill, dataset)]
    for run in range(1, spec.runs):
        again = {"teacher": _dump(spec.teacher), "seed": spec.seed, "run": run}
        teachers.append(plan.add(f"teacher-{run}", "teacher", again, {"dataset": [dataset]}))
    seen = {"dataset": [dataset], "teacher": teachers}
    if spec.experts:
        seen["targets"] = [_targets(plan, dataset)]
        seen["experts"] = _experts(plan, distill, facts, spec.path, spec.epochs, spec.same_start)
    params: dict[str, Any] = {"seed": spec.seed}
    if spec.experts:
        params |= {"student": _dump(spec.student), "path": spec.path, "same_start": spec.same_start}
    plan.add("observe", "observe", params, seen, queue="cpu")
    return plan
