"""What a spec's names mean here and now: datasets, a checkpoint, a synthetic set; and the plan that follows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from ddcore.checks import DatasetFacts
from ddcore.errors import Problem, SpecError
from ddcore.networks.shapes import Shapes
from ddcore.plan import Plan, plan_distill, plan_evaluate, plan_observe
from ddcore.specs import DistillSpec, EvaluateSpec, GivenTeacherSpec, ObserveSpec, SweepSpec
from ddcore.sweep_plan import datasets_of, distillations_by_key, plan_sweep
from jobs import catalogue, checkpoints
from jobs.errors import UnknownDataset
from jobs.models import Dataset, Job, Result
from jobs.store import Store

Loc = tuple[str | int, ...]
JobSpec = DistillSpec | EvaluateSpec | ObserveSpec | SweepSpec


@dataclass(frozen=True)
class Resolved:
    """A spec ready to be submitted. meaning: what its names meant, kept in the job's row so that a retry means the same.

    of_steps: of a sweep, the distillations that its steps are for, by the steps' keys.
    """

    kind: str
    spec: JobSpec
    plan: Plan
    meaning: dict[str, Any]
    wanted: tuple[str, ...] = ()
    of_steps: Callable[[], dict[str, DistillSpec]] = dict


def resolve(
    session: Session, store: Store, spec: JobSpec, pinned: Mapping[str, str] | None = None, known: dict[str, Shapes] | None = None
) -> Resolved:
    """Look everything up and plan. Raises `SpecError` with every problem.

    pinned: dataset references that are known to mean these ids. known: checkpoints that need not be read (`checkpoints.resolve`).
    """
    known = {} if known is None else known
    if isinstance(spec, DistillSpec):
        return _resolve_distill(session, store, spec, pinned or {}, known)
    if isinstance(spec, ObserveSpec):
        return _resolve_observe(session, spec, pinned or {})
    if isinstance(spec, SweepSpec):
        return _resolve_sweep(session, store, spec, pinned or {}, known)
    return _resolve_evaluate(session, spec, pinned or {})


def spec_of(job: Job) -> JobSpec:
    """The spec of a job as it was posted, independent of what its preset has become since."""
    if job.kind == "distill":
        return DistillSpec.model_validate({**job.spec, "preset": None})
    if job.kind == "sweep":
        return SweepSpec.model_validate({**job.spec, "preset": None, "base": {**job.spec["base"], "preset": None}})
    return ObserveSpec.model_validate(job.spec) if job.kind == "observe" else EvaluateSpec.model_validate(job.spec)


def _resolve_distill(session: Session, store: Store, spec: DistillSpec, pinned: Mapping[str, str], known: dict[str, Shapes]) -> Resolved:
    problems: list[Problem] = []
    dataset = _dataset(session, spec.dataset, ("dataset",), pinned, problems)
    if dataset is None:
        raise SpecError(problems)
    facts = catalogue.facts(dataset)
    keyed = _with_checkpoint(session, store, spec, facts, known)
    plan = plan_distill(keyed, facts)
    checkpoint = keyed.teacher.checkpoint if isinstance(keyed.teacher, GivenTeacherSpec) else None
    meaning = {"dataset_id": dataset.id, "datasets": {spec.dataset: dataset.id}, "checkpoint": checkpoint}
    return Resolved("distill", spec, plan, meaning, wanted=("distill",))


def _resolve_observe(session: Session, spec: ObserveSpec, pinned: Mapping[str, str]) -> Resolved:
    problems: list[Problem] = []
    dataset = _dataset(session, spec.dataset, ("dataset",), pinned, problems)
    if dataset is None:
        raise SpecError(problems)
    plan = plan_observe(spec, catalogue.facts(dataset))
    meaning = {"dataset_id": dataset.id, "datasets": {spec.dataset: dataset.id}, "checkpoint": None}
    return Resolved("observe", spec, plan, meaning)


def _resolve_sweep(session: Session, store: Store, spec: SweepSpec, pinned: Mapping[str, str], known: dict[str, Shapes]) -> Resolved:
    problems: list[Problem] = []
    found = {ref: _dataset(session, ref, loc, pinned, problems) for ref, loc in datasets_of(spec).items()}
    datasets = {ref: dataset for ref, dataset in found.items() if dataset is not None}
    if problems:
        raise SpecError(problems)
    facts = {ref: catalogue.facts(dataset) for ref, dataset in datasets.items()}
    keyed: dict[str, DistillSpec] = {}
    for name, variant in spec.variants.items():
        try:
            keyed[name] = _with_checkpoint(session, store, variant, facts[variant.dataset], known)
        except SpecError as error:
            problems += [replace(one, loc=("variants", name, *one.loc)) for one in error.problems]
    if problems:
        raise SpecError(problems)
    whole = spec.model_copy(update={"variants": keyed})
    main = datasets[next(iter(keyed.values())).dataset]
    meaning = {"dataset_id": main.id, "datasets": {ref: dataset.id for ref, dataset in datasets.items()}, "checkpoint": None}
    return Resolved("sweep", spec, plan_sweep(whole, facts), meaning, of_steps=lambda: distillations_by_key(whole, facts))


def _with_checkpoint(session: Session, store: Store, spec: DistillSpec, facts: DatasetFacts, known: dict[str, Shapes]) -> DistillSpec:
    """The spec with its checkpoint named by its bytes, so that equal files make equal keys."""
    teacher = spec.teacher
    if not isinstance(teacher, GivenTeacherSpec) or teacher.checkpoint is None:
        return spec
    sha256, problems = checkpoints.resolve(session, store, teacher.checkpoint, teacher.backbone, facts.image_shape, known)
    if problems:
        raise SpecError(problems)
    return spec.model_copy(update={"teacher": teacher.model_copy(update={"checkpoint": sha256})})


def _resolve_evaluate(session: Session, spec: EvaluateSpec, pinned: Mapping[str, str]) -> Resolved:
    problems: list[Problem] = []
    made = session.get(Result, spec.synthetic_set)
    if made is None or made.kind != "synthetic_set":
        allowed = "the id (syn_…) of a synthetic set that a distill job has made"
        raise SpecError([Problem(("synthetic_set",), "there is no such synthetic set", spec.synthetic_set, allowed)])
    origin = session.get_one(Job, made.job_id)
    distill = spec_of(origin)
    if not isinstance(distill, DistillSpec):
        raise TypeError(f"job {origin.id} made a synthetic set but is of kind {origin.kind}")
    if isinstance(distill.teacher, GivenTeacherSpec):
        teacher = distill.teacher.model_copy(update={"checkpoint": origin.resolved["checkpoint"]})
        distill = distill.model_copy(update={"teacher": teacher})
    datasets: dict[str, Dataset] = {}
    for i, task in enumerate(spec.downstream):
        for role, ref in (("train", task.train), ("test", task.test)):
            found = _dataset(session, ref, ("downstream", i, role), pinned, problems)
            if found is not None:
                datasets[ref] = found
    if problems:
        raise SpecError(problems)
    facts = catalogue.facts(session.get_one(Dataset, made.dataset_id))
    plan = plan_evaluate(spec, distill, facts, {ref: catalogue.facts(dataset) for ref, dataset in datasets.items()})
    meaning = {
        "dataset_id": made.dataset_id,
        "datasets": {ref: dataset.id for ref, dataset in datasets.items()},
        "checkpoint": origin.resolved["checkpoint"],
        "synthetic_set_id": made.id,
    }
    return Resolved("evaluate", spec, plan, meaning)


def _dataset(session: Session, ref: str, loc: Loc, pinned: Mapping[str, str], problems: list[Problem]) -> Dataset | None:
    """The dataset; or None, with a problem added, if it is unknown or was rejected."""
    try:
        dataset = catalogue.find(session, pinned.get(ref, ref))
    except UnknownDataset as error:
        allowed = "the id or name of a dataset" + (f", such as {', '.join(error.close)}" if error.close else "; GET /datasets lists them")
        problems.append(Problem(loc, f"there is no dataset {ref!r}", ref, allowed))
        return None
    state = catalogue.state(session, dataset)
    if state.state == "rejected":
        why = state.error.detail if state.error else ""
        problems.append(Problem(loc, f"dataset {dataset.name} was rejected: {why}", ref, "a dataset that is not rejected; upload it again"))
        return None
    return dataset
