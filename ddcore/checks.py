"""What in a spec makes no sense for its data sets: the checks that need their facts, torch-free."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ddcore.errors import Problem
from ddcore.networks.names import check_backbone, check_local_crops, check_masked_patches, check_patches
from ddcore.networks.student_sizes import check_halvings, check_student
from ddcore.specs import DinoSpec, DinoTMSpec, DistillSpec, GivenTeacherSpec, MeasureSpec, ObserveSpec

LEAST_SNAPSHOTS = 3  # to be observed: two steps are the least that can differ in direction


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a dataset before any worker reads it.

    source: `{"builtin": name}` or `{"archive": sha256}`; it names the dataset for good. class_counts is None without labels.
    """

    name: str
    source: dict[str, str]
    num_images: int
    image_shape: tuple[int, int, int]  # channels, height, width
    class_counts: tuple[int, ...] | None

    @property
    def digest(self) -> str:
        return digest(self.source)


def digest(value: Any) -> str:
    """The sha256 of `value` as canonical JSON (sorted keys, no spaces, no NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_observe(spec: ObserveSpec, facts: DatasetFacts) -> list[Problem]:
    """What in an observation makes no sense for its dataset; empty if nothing."""
    unread = () if spec.experts else ("student", "method")
    problems = [one for one in check_distill(as_distillation(spec), facts) if one.loc[0] not in unread]
    if spec.path in ("final", "labels"):  # which any teacher may be followed by
        problems = [one for one in problems if one.loc[0] != "method"]
    if spec.experts and spec.path == "labels" and facts.class_counts is None:
        problems.append(
            Problem(("path",), f"dataset {facts.name} has no labels to follow", "labels", "another path, or a labelled dataset")
        )
    problems = [_as_observed(one, spec) for one in problems]
    if not isinstance(spec.teacher, GivenTeacherSpec) and spec.teacher.num_snapshots < LEAST_SNAPSHOTS:
        said = "too few snapshots of a run to tell how it turned"
        problems.append(Problem(("teacher", "snapshots"), said, spec.teacher.num_snapshots, f"{LEAST_SNAPSHOTS} or more"))
    return problems


def _as_observed(problem: Problem, spec: ObserveSpec) -> Problem:
    """A problem of the distillation whose steps are observed, by the fields that an observation has."""
    if problem.loc == ("method", "name"):
        return replace(problem, loc=("path",), given=spec.path, allowed="teacher.ssl dino, or path final or student")
    if problem.loc == ("teacher", "epochs"):
        return replace(problem, allowed=f"{spec.epochs} or more, or fewer epochs")
    return problem


def check_distill(spec: DistillSpec, facts: DatasetFacts) -> list[Problem]:
    """What in the spec makes no sense for this dataset; empty if nothing."""
    problems = []
    _, height, width = facts.image_shape
    if spec.num_images > facts.num_images:
        problems.append(
            Problem(
                ("num_images",), f"dataset {facts.name} has only {facts.num_images} images", spec.num_images, f"1 to {facts.num_images}"
            )
        )
    if not isinstance(spec.teacher, GivenTeacherSpec) and facts.num_images < 16:
        problems.append(Problem(("dataset",), "a teacher cannot be trained on so few images", facts.num_images, "16 images or more"))
    problems += check_student(("student",), spec.student, facts.image_shape)
    problems += check_backbone(spec.teacher)
    problems += check_patches(spec.teacher.backbone, height, width)
    problems += check_local_crops(spec.teacher, height, width)
    problems += check_masked_patches(spec.teacher)
    if spec.teacher.backbone.name == "convnet":
        problems += check_halvings(("teacher", "backbone", "depth"), spec.teacher.backbone.depth, height, width)
    problems += _check_path(spec)
    if spec.teacher.min_knn_accuracy > 0 and facts.class_counts is None:
        problems.append(
            Problem(
                ("teacher", "min_knn_accuracy"), f"dataset {facts.name} has no labels to measure it on", spec.teacher.min_knn_accuracy, "0"
            )
        )
    return problems


def _check_path(spec: DistillSpec) -> list[Problem]:
    """What a DINO run's trajectory cannot be had from."""
    method, teacher, ssl = spec.method, spec.teacher, spec.teacher.ssl
    if not isinstance(method, DinoTMSpec):
        return []
    if method.path in ("teacher", "student") and isinstance(teacher, DinoSpec):  # the student network is trained by this recipe
        if teacher.local_crop_size is not None:
            said, allowed = "the student network, which this recipe trains, reads images of one size", "leave it out: crops have full size"
            return [Problem(("teacher", "local_crop_size"), said, teacher.local_crop_size, allowed)]
        if teacher.masked_patches:
            said = "the student network, which this recipe trains, has no patches that could be hidden from it"
            return [Problem(("teacher", "masked_patches"), said, teacher.masked_patches, "0")]
    if ssl == "dino" or (method.path == "student" and ssl != "given"):
        epochs = method.max_start_epoch + method.expert_epochs
        if method.path in ("teacher", "student") and not isinstance(teacher, GivenTeacherSpec) and teacher.epochs < epochs:
            said = f"the run is too short to record the {epochs} parts that windows span"
            return [Problem(("teacher", "epochs"), said, teacher.epochs, f"{epochs} or more, or fewer method.max_start_epoch")]
        if method.path == "staged" and isinstance(teacher, DinoSpec) and teacher.num_snapshots <= method.stages:
            return [
                Problem(("teacher", "snapshots"), "stages are snapshots of the run", teacher.num_snapshots, f"more than {method.stages}")
            ]
        return []
    said = f"there is no DINO run of a {ssl} teacher to match (path {method.path})"
    own = "" if ssl == "given" else f", or path student for the student network's own {ssl} run"
    return [Problem(("method", "name"), said, "dino_tm", f"teacher.ssl dino, or method mkdt_plus{own}")]


def check_evaluate(spec: MeasureSpec, distill: DistillSpec, facts: DatasetFacts, downstream: Mapping[str, DatasetFacts]) -> list[Problem]:
    """What in an evaluation makes no sense for its datasets; empty if nothing."""
    problems: list[Problem] = []
    for i, network in enumerate(spec.networks):
        problems += check_student(("networks", i), network, facts.image_shape)
    for i, task in enumerate(spec.downstream):
        train, test = downstream[task.train], downstream[task.test]
        for role, one in (("train", train), ("test", test)):
            if one.class_counts is None:
                problems.append(
                    Problem(("downstream", i, role), f"dataset {one.name} has no labels", getattr(task, role), "a labelled dataset")
                )
        if train.class_counts is None or test.class_counts is None:
            continue
        if len(train.class_counts) != len(test.class_counts):
            problems.append(
                Problem(
                    ("downstream", i, "test"),
                    "train and test have different classes",
                    len(test.class_counts),
                    f"{len(train.class_counts)} classes",
                )
            )
        for j, fraction in enumerate(spec.label_fractions):
            rarest = min(_not_held_out(count, spec.validation) for count in train.class_counts)
            if labels_of_class(fraction, rarest) < 1:
                problems.append(
                    Problem(
                        ("label_fractions", j),
                        f"leaves the rarest class of {train.name} ({rarest} {'image' if rarest == 1 else 'images'}) without a label",
                        fraction,
                        f"{_least_fraction(rarest)} or more" if rarest else "a dataset with images in every class",
                    )
                )
    return problems


def _least_fraction(count: int) -> float:
    """The smallest label fraction of four decimals or so that leaves a class of `count` images one label."""
    scale = 10.0 ** (4 + len(str(count)))
    return math.ceil(0.5 / count * scale) / scale


def labels_of_class(fraction: float, count: int) -> int:
    """How many of a class's `count` images keep their label in a stratified draw of `fraction`: rounded half up."""
    return math.floor(fraction * count + 0.5)


def _not_held_out(count: int, validation: float | None) -> int:
    """How many of a class's images are left to fit on beside a validation split; see `ddcore.evaluation.draws.split`."""
    return count if validation is None or count < 2 else count - max(labels_of_class(validation, count), 1)


def as_distillation(spec: ObserveSpec) -> DistillSpec:
    """The distillation whose teacher and experts an observation watches: it shares its steps with one of equal settings."""
    return DistillSpec(
        dataset=spec.dataset,
        num_images=1,
        teacher=spec.teacher,
        student=spec.student,
        experts=spec.training.model_copy(update={"num": max(1, spec.experts)}),
        method=DinoTMSpec(
            path=spec.path if spec.experts and spec.path != "labels" else "final", expert_epochs=spec.epochs, max_start_epoch=0, lag=False
        ),
        seed=spec.seed,
    )
