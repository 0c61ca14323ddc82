"""From a sweep to one graph of steps: every variant and seed planned by itself, then merged wherever two steps are one. Torch-free."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ddcore.checks import DatasetFacts, check_distill, check_evaluate
from ddcore.errors import Problem, SpecError
from ddcore.plan import Measurement, Plan, add_measurement, horizon, task_names
from ddcore.specs import DistillSpec, MeasureSpec, SweepSpec


@dataclass(frozen=True)
class Part:
    """One distillation of a sweep, planned by itself."""

    variant: str
    distill: DistillSpec
    plan: Plan
    measured: Measurement


def plan_sweep(spec: SweepSpec, facts: Mapping[str, DatasetFacts]) -> Plan:
    """Steps of a sweep; the last is `ranking`. facts: of every dataset, by the name the spec uses. Raises `SpecError`.

    Steps of equal keys are one step. Seeds come first: all variants of one teacher are done before the next is trained.
    """
    if problems := check_sweep(spec, facts):
        raise SpecError(problems)
    parts = list(_parts(spec, facts))
    whole, names = _merged(parts)
    cells, teachers = [], []
    for part in parts:
        cells += [names[part.plan.steps[name].key] for name in part.measured.cells]
        teachers.append(names[part.plan.steps["teacher"].key])
    params: dict[str, Any] = {
        "variants": list(spec.variants),
        "seeds": list(dict.fromkeys(part.distill.seed for part in parts)),
        "networks": max(1, len(spec.evaluate.networks)),
        "tasks": task_names(spec.evaluate),
        "budgets": {name: _budget(spec, variant) for name, variant in spec.variants.items()},
    }
    if spec.evaluate.validation is not None:
        params["validation"] = spec.evaluate.validation
    whole.add("ranking", "ranking", params, {"cells": cells, "teachers": teachers}, queue="cpu")
    return whole


def _budget(spec: SweepSpec, variant: DistillSpec) -> dict[str, int]:
    """What an encoder is pre-trained with: images, and steps on them. Variants are compared at equal ones unless they say otherwise."""
    return {"images": variant.num_images, "steps": spec.evaluate.pretrain.steps or horizon(variant)}


def distillations_by_key(spec: SweepSpec, facts: Mapping[str, DatasetFacts]) -> dict[str, DistillSpec]:
    """Of each step but the ranking, by its key, the first distillation that needs it."""
    found: dict[str, DistillSpec] = {}
    for part in _parts(spec, facts):
        for step in part.plan:
            found.setdefault(step.key, part.distill)
    return found


def _parts(spec: SweepSpec, facts: Mapping[str, DatasetFacts]) -> Iterator[Part]:
    for number in range(spec.seeds):
        for variant in spec.variants:
            plan, distill = Plan(), distillation(spec, variant, number)
            measured = add_measurement(plan, measure(spec, number), distill, facts[distill.dataset], facts)
            yield Part(variant, distill, plan, measured)


def distillation(spec: SweepSpec, variant: str, number: int) -> DistillSpec:
    """The spec of a variant's distillation `number`."""
    own = spec.variants[variant]
    return own.model_copy(update={"seed": own.seed + number})


def measure(spec: SweepSpec, number: int) -> MeasureSpec:
    """How distillation `number` is scored: with initialisations, subsets and label draws of its own, so that distillations are
    independent; the same for all variants, so that these pair."""
    return spec.evaluate.model_copy(update={"seed": spec.evaluate.seed + number * spec.evaluate.seeds})


def datasets_of(spec: SweepSpec) -> dict[str, tuple[str | int, ...]]:
    """Every dataset that the spec names, and where it first names it."""
    found: dict[str, tuple[str | int, ...]] = {}
    base = spec.base.dataset
    for name, variant in spec.variants.items():
        found.setdefault(variant.dataset, ("base", "dataset") if variant.dataset == base else ("variants", name, "dataset"))
    for i, task in enumerate(spec.evaluate.downstream):
        found.setdefault(task.train, ("evaluate", "downstream", i, "train"))
        found.setdefault(task.test, ("evaluate", "downstream", i, "test"))
    return found


def check_sweep(spec: SweepSpec, facts: Mapping[str, DatasetFacts]) -> list[Problem]:
    """What in a sweep makes no sense for its datasets; empty if nothing. What is wrong with every variant is said once, of `base`."""
    of_variants: defaultdict[str, list[tuple[str, Problem]]] = defaultdict(list)
    of_measuring: dict[str, Problem] = {}
    for name, variant in spec.variants.items():
        own = facts[variant.dataset]
        for problem in check_distill(variant, own):
            of_variants[repr(problem)].append((name, problem))
        for problem in check_evaluate(spec.evaluate, variant, own, facts):
            of_measuring[repr(problem)] = replace(problem, loc=("evaluate", *problem.loc))
    problems = []
    for alike in of_variants.values():
        if len(alike) == len(spec.variants) > 1:
            problems.append(replace(alike[0][1], loc=("base", *alike[0][1].loc)))
        else:
            problems += [replace(problem, loc=("variants", name, *problem.loc)) for name, problem in alike]
    return problems + list(of_measuring.values())


def _merged(parts: Sequence[Part]) -> tuple[Plan, dict[str, str]]:
    """One plan of all steps, each once, and their names by key."""
    owners: defaultdict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for part in parts:
        for step in part.plan:
            owners[step.key].append((part.distill.seed, part.variant, step.name))
    whole, names = Plan(), dict[str, str]()
    for part in parts:
        for step in part.plan:
            if step.key in names:
                continue
            name = names[step.key] = _name(owners[step.key], whole)
            inputs = {role: tuple(names[part.plan.steps[one].key] for one in before) for role, before in step.inputs.items()}
            whole.steps[name] = replace(step, name=name, inputs=inputs)
    return whole, names


def _name(owners: list[tuple[int, str, str]], taken: Plan) -> str:
    """A plain name if several seeds share the step, `3/teacher` if several variants of seed 3 do, `mkdt/3/distill` if none does.

    Where variants differ in their teachers, as two steps cannot have one name, each goes by the first variant that needs it.
    """
    seed, variant, name = owners[0]
    own = f"{variant}/{seed}/{name}"
    if len({one for one, _, _ in owners}) > 1:
        shared = name
    elif len({one for _, one, _ in owners}) > 1:
        shared = f"{seed}/{name}"
    else:
        return own
    return own if shared in taken.steps else shared
