"""What a user posts: a distillation, an evaluation, an observation."""

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from ddcore.presets import PRESETS
from ddcore.specs.fields import Fraction, NonNegative, Positive, Seed, Spec
from ddcore.specs.methods import MATCHING, ExpertPath, ImprovedSpec, MatchingSpec, MethodSpec, MKDTSpec
from ddcore.specs.students import ExpertsSpec, StudentSpec
from ddcore.specs.teachers import DinoSpec, GivenTeacherSpec, TeacherSpec


class DistillSpec(Spec):
    """One distillation: dataset -> teacher -> targets -> experts -> synthetic set."""

    preset: str | None = Field(None, description="a named starting point; the other fields override it", examples=["demo"])
    dataset: str = Field("digits-train", min_length=1, max_length=500, description="id or name of a dataset")
    num_images: int = Field(100, ge=1, le=1_000_000, description="size of the synthetic set")
    teacher: TeacherSpec = DinoSpec()
    student: StudentSpec = StudentSpec()
    experts: ExpertsSpec = ExpertsSpec()
    method: MethodSpec = MKDTSpec()
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, body: Any) -> Any:
        if not isinstance(body, dict) or body.get("preset") is None:
            return body
        name = body["preset"]
        if not isinstance(name, str) or name not in PRESETS:
            known = ", ".join(sorted(PRESETS))
            error = PydanticCustomError("unknown_preset", "no preset is called that; there are: {expected}", {"expected": known})
            raise ValidationError.from_exception_data(cls.__name__, [InitErrorDetails(type=error, loc=("preset",), input=name)])
        return merge(PRESETS[name], body)


class Downstream(Spec):
    """A labelled task: a linear probe and k-NN are fitted on `train` and scored on `test`."""

    train: str = Field(min_length=1, max_length=500)
    test: str = Field(min_length=1, max_length=500)


class PretrainSpec(Spec):
    """How an encoder is pre-trained on each set: the same steps, batch, momentum for all; the rate is described beside `lr`."""

    steps: int | None = Field(None, ge=1, le=1_000_000, description="SGD steps; the horizon the matched windows cover when absent")
    batch_size: int = Field(256, ge=1, le=65536)
    momentum: float = Field(0.0, ge=0.0, lt=1.0)
    weight_decay: NonNegative = 0.0
    lr: Positive | None = Field(
        None,
        description="one rate for every set; when absent the synthetic set uses its learned rate (layers' rates with the student they"
        " were learned with, their geometric mean with other networks), and each baseline the rate of `lr_grid` that does best on a"
        " validation split of the training images",
    )
    lr_grid: tuple[Positive, ...] = Field(
        (0.25, 0.5, 1.0, 2.0, 4.0),
        min_length=1,
        max_length=20,
        description="multiples of the learned (mean) rate that baselines may choose from",
    )


Baseline = Literal["random", "k_means", "high_loss", "none"]


class MeasureSpec(Spec):
    """How a set is measured: encoders pre-trained on it and on baselines of the same size and targets, compared on labelled tasks."""

    downstream: tuple[Downstream, ...] = Field(min_length=1, max_length=20)
    baselines: tuple[Baseline, ...] = ("random", "k_means", "high_loss", "none")
    networks: tuple[StudentSpec, ...] = Field((), max_length=10, description="the student of the synthetic set when empty")
    seeds: int = Field(5, ge=1, le=200, description="independent initialisations (and subset draws); intervals need at least two")
    label_fractions: tuple[Fraction, ...] = Field((0.01, 0.05, 0.1, 0.5), min_length=1, max_length=10)
    label_draws: int = Field(3, ge=1, le=100, description="stratified draws of labelled images for each fraction below one")
    probe: Literal["ridge", "logistic"] = "ridge"
    knn: int = Field(10, ge=1, le=1000, description="neighbours of the k-NN score (all training labels)")
    rounding: bool = Field(True, description="also score the synthetic images rounded to 8 bits, to measure what that costs")
    pretrain: PretrainSpec = PretrainSpec()
    validation: float | None = Field(
        None,
        gt=0.0,
        le=0.5,
        description="to choose settings by: score on this share of each task's training images, held out from probes and tuning alike, and"
        " leave its test images unread",
    )
    seed: Seed = 0


class EvaluateSpec(MeasureSpec):
    """Pre-train encoders on a synthetic set and on baselines of the same size and targets; compare them on labelled tasks."""

    synthetic_set: str = Field(
        min_length=1, max_length=500, description="id of a synthetic set, or the folder of a finished run (command line)"
    )


class ObserveSpec(Spec):
    """Train a teacher, and experts beside it if asked for, only to see how they move: figures and tables of their recorded paths."""

    dataset: str = Field("digits-train", min_length=1, max_length=500, description="id or name of a dataset")
    teacher: TeacherSpec = Field(DinoSpec(), description="one that is trained: `dino`, `barlow_twins` or `simclr`")
    runs: int = Field(
        1, ge=1, le=50, description="runs from one initialisation, each with batches and views of its own: their scatter is noise"
    )
    experts: int = Field(0, ge=0, le=1000, description="students trained to regress the teacher's targets, and observed beside it")
    epochs: int = Field(5, ge=2, le=1000, description="of an expert, one snapshot each; read only with experts")
    student: StudentSpec = Field(StudentSpec(), description="the network of an expert; read only with experts")
    path: ExpertPath | Literal["labels"] = Field(
        "final",
        description="what an expert follows: the finished teacher, the labels (supervised: squared error on them, standardised), a DINO"
        " teacher stage by stage, or a run of its own by the teacher's"
        " recipe, whose moving average (`teacher`, DINO only) or very parameters (`student`) are recorded",
    )
    same_start: bool = Field(True, description="all experts begin from one initialisation: then their scatter is noise")
    training: ExpertsSpec = Field(ExpertsSpec(), description="how experts are trained; its `num` is not read")
    seed: Seed = 0

    @field_validator("teacher", mode="before")
    @classmethod
    def _is_trained(cls, teacher: Any) -> Any:
        given = teacher.get("ssl") == "given" if isinstance(teacher, dict) else isinstance(teacher, GivenTeacherSpec)
        if given:
            raise ValueError("a given teacher has no recorded run: train one with ssl dino, barlow_twins or simclr")
        return teacher


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the fields of `over`, nested; a nested table that names another kind (`ssl`, `name`) replaces the whole.

    Of one method that matches trajectories, another keeps the fields that both have.
    """
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            same_kind = all(value.get(tag, old.get(tag)) == old.get(tag) for tag in ("ssl", "name"))
            if not same_kind and old.get("name") in MATCHING and value.get("name") in MATCHING:
                shared = MatchingSpec if "mkdt" in (old["name"], value["name"]) else ImprovedSpec
                old, same_kind = {name: kept for name, kept in old.items() if name in shared.model_fields}, True
            out[key] = merge(old, value) if same_kind else value
        else:
            out[key] = value
    return out
