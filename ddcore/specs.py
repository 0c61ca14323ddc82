"""What a run is: pydantic models, torch-free, shared by the HTTP body, the database row, the command line and the manifest.

Every field has a default, so a spec is a preset (`ddcore.presets`) plus the fields that differ. Models are frozen and refuse
unknown fields. Sizes that only make sense beside a data set are checked in `ddcore.plan.check`.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from ddcore.presets import PRESETS


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the first of the two must not be larger than the second")
    return pair


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"each is named at most once, but {', '.join(twice)} more often")
    return names


Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Scale = Annotated[tuple[Fraction, Fraction], AfterValidator(_rising)]  # of the area of an image: from, to
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Augmentation = Literal["flip", "shift", "scale", "brightness", "saturation", "contrast", "cutout"]


class Spec(BaseModel):
    """Base of all specs: frozen, and no field that is not described here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneSpec(Spec):
    """A teacher's encoder: `resnet18` (3x3 stem, no max-pool), `convnet`, `vit_tiny_patch4`, or any timm model by its name."""

    name: str = Field("resnet18", min_length=1, max_length=200, examples=["resnet18", "convnet", "vit_tiny_patch4"])
    width: int = Field(64, ge=4, le=1024, description="channels of the first stage (resnet18) or of every block (convnet)")
    depth: int = Field(3, ge=1, le=6, description="blocks; read by convnet only")


class AugmentSpec(Spec):
    """Random views of a batch, drawn on the device; probabilities and strengths as in SimCLR (2002.05709, appendix A)."""

    crop_scale: Scale = (0.2, 1.0)
    flip: bool = True
    jitter: NonNegative = 0.8
    jitter_strength: NonNegative = 0.5
    grayscale: float = Field(0.2, ge=0.0, le=1.0)
    blur: float = Field(0.0, ge=0.0, le=1.0)
    solarize: float = Field(0.0, ge=0.0, le=1.0)
    noise: NonNegative = Field(0.0, description="deviation of Gaussian pixel noise, in units of the 0..1 range")


class _Teacher(Spec):
    backbone: BackboneSpec = BackboneSpec()
    epochs: Count = 200
    batch_size: int = Field(256, ge=2, le=65536)
    lr: Positive = 1e-3
    weight_decay: NonNegative = 1e-4
    warmup_epochs: int = Field(10, ge=0)
    augment: AugmentSpec = AugmentSpec()
    snapshots: int = Field(20, ge=2, le=1000, description="parameter snapshots kept of the run, evenly spaced, for its trajectory")
    min_knn_accuracy: float = Field(0.0, ge=0.0, le=100.0, description="percent; a labelled run below it fails as collapsed")
    amp: bool = Field(True, description="bfloat16 autocast on CUDA")
    cpu_amp: bool = Field(
        False,
        description="the same on a CPU: less time for a ResNet if the processor multiplies bfloat16 (avx512_bf16, AMX), more for a ConvNet",
    )
    compile: bool = Field(False, description="torch.compile the backbone: up to a minute to begin with, for less time a step in long runs")


class DinoSpec(_Teacher):
    """DINO (2104.14294): a student matches the centred, sharpened output of its own exponential moving average."""

    ssl: Literal["dino"] = "dino"
    out_dim: int = Field(1024, ge=2, le=262144, description="prototypes of the head")
    hidden_dim: int = Field(512, ge=8)
    bottleneck_dim: int = Field(128, ge=4)
    momentum: float = Field(0.99, ge=0.0, lt=1.0, description="EMA momentum at the start; a cosine takes it to 1")
    student_temperature: Positive = 0.1
    teacher_temperature: Positive = 0.04
    warmup_teacher_temperature: Positive = 0.04
    warmup_teacher_epochs: int = Field(0, ge=0)
    centering: Literal["ema", "sinkhorn"] = Field(
        "ema",
        description="what keeps the teacher from one answer for all images: an averaged centre taken off its output, or the"
        " Sinkhorn-Knopp balance of every batch over the prototypes (SwAV, 2006.09882; DINOv2, 2304.07193)",
    )
    center_momentum: float = Field(0.9, ge=0.0, lt=1.0, description="of the averaged centre; not read by sinkhorn")
    koleo: NonNegative = Field(
        0.0,
        description="weight of the KoLeo regulariser (DINOv2, 2304.07193: 0.1), which spreads the student's features of the global views",
    )
    local_crops: int = Field(
        0, ge=0, le=16, description="views of small parts, resized to full size, seen by the student only (multi-crop)"
    )
    local_crop_scale: Scale = (0.05, 0.4)
    freeze_last_layer_epochs: int = Field(1, ge=0)


class BarlowTwinsSpec(_Teacher):
    """Barlow Twins (2103.03230): the cross-correlation of two views' embeddings is driven to the identity."""

    ssl: Literal["barlow_twins"] = "barlow_twins"
    projector_dim: int = Field(1024, ge=8)
    off_diagonal: Positive = Field(0.005, description="lambda of the paper's equation 1")


class SimCLRSpec(_Teacher):
    """SimCLR (2002.05709): two views of an image attract, all others of the batch repel (NT-Xent)."""

    ssl: Literal["simclr"] = "simclr"
    projector_dim: int = Field(128, ge=8)
    temperature: Positive = 0.5


class GivenTeacherSpec(Spec):
    """A teacher that exists: a pretrained timm or torchvision model by name, or a safetensors checkpoint of `backbone`."""

    ssl: Literal["given"] = "given"
    backbone: BackboneSpec = BackboneSpec()
    source: Literal["checkpoint", "timm", "torchvision"] = "checkpoint"
    checkpoint: str | None = Field(None, description="an artifact id (service) or a path (command line) of a safetensors file")
    min_knn_accuracy: float = Field(0.0, ge=0.0, le=100.0)

    @model_validator(mode="after")
    def _has_checkpoint(self) -> "GivenTeacherSpec":
        if (self.source == "checkpoint") != (self.checkpoint is not None):
            raise ValueError("a checkpoint is needed with source 'checkpoint', and only there")
        return self


TeacherSpec = Annotated[DinoSpec | BarlowTwinsSpec | SimCLRSpec | GivenTeacherSpec, Field(discriminator="ssl")]


# What `width` and `depth` are when absent, and which depths there are.
_STUDENTS: dict[str, tuple[int, int, range]] = {
    "convnet": (128, 3, range(1, 7)),
    "resnet10": (64, 4, range(4, 5)),
    "resnet18": (64, 4, range(4, 5)),
    "vgg11": (64, 5, range(5, 6)),
    "vit_tiny": (192, 12, range(1, 25)),
}
VIT_HEADS = 3


class StudentSpec(Spec):
    """The network whose trajectories are matched, and that a set pre-trains. None has running statistics.

    `convnet`: blocks of 3x3 convolution, instance norm, ReLU, 2x2 average pool, then one linear layer. `resnet10`, `resnet18`:
    residual networks with a 3x3 stem and group norm, from 8x8 pixels. `vgg11`: eight convolutions with group norm, from 32x32
    pixels. `vit_tiny`: a vision transformer on patches of 4x4 pixels, for sides that are multiples of 4.
    """

    name: Literal["convnet", "resnet10", "resnet18", "vgg11", "vit_tiny"] = "convnet"
    depth: int = Field(
        3, ge=1, le=24,
        description="blocks of convnet (at most 6; 3 when absent) or vit_tiny (at most 24; 12); stages of the others, which their names fix"
        " (resnet10, resnet18: 4; vgg11: 5)",
    )  # fmt: skip
    width: int = Field(
        128, ge=4, le=1024,
        description="channels of every block (convnet; 128 when absent), of the first stage (resnet10, resnet18, vgg11; 64), or of a"
        " token (vit_tiny; 192, a multiple of its 3 heads)",
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _sizes_by_name(cls, body: Any) -> Any:
        if not isinstance(body, dict) or not isinstance(name := body.get("name"), str) or name not in _STUDENTS:
            return body
        width, depth, _ = _STUDENTS[name]
        return {"width": width, "depth": depth} | body

    @field_validator("depth")
    @classmethod
    def _depth_of_its_name(cls, depth: int, info: ValidationInfo) -> int:
        name = info.data.get("name", "convnet")
        if depth not in (allowed := _STUDENTS[name][2]):
            raise ValueError(f"{name} has {_words(allowed)}")
        return depth

    @field_validator("width")
    @classmethod
    def _width_of_its_name(cls, width: int, info: ValidationInfo) -> int:
        if info.data.get("name") == "vit_tiny" and width % VIT_HEADS:
            raise ValueError(f"the width of vit_tiny is a multiple of its {VIT_HEADS} heads")
        return width


def _words(depths: range) -> str:
    return f"{depths[0]} to {depths[-1]} blocks" if len(depths) > 1 else f"{depths[0]} stages, no more and no fewer"


class ExpertsSpec(Spec):
    """Knowledge-distillation runs whose trajectories are matched (MKDT, 2410.02116, section 4): SGD on the squared error."""

    num: int = Field(100, ge=1, le=10_000)
    lr: Positive = 0.1
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    weight_decay: NonNegative = 1e-4
    batch_size: int = Field(256, ge=1, le=65536)
    ema: float | None = Field(None, gt=0.0, lt=1.0, description="per-step decay of an averaged path, matched instead of the raw one")
    per_shard: int = Field(10, ge=1, le=1000, description="experts a step trains; shards run on any worker that listens")
    augment: AugmentSpec | None = Field(None, description="random views of every batch; targets stay those of the whole images")
    storage: Literal["float32", "bf16_deltas"] = Field(
        "float32", description="snapshots kept whole, or as 16-bit differences: half the size, with an error that is measured and reported"
    )


class MKDTSpec(Spec):
    """Matching knowledge-distillation trajectories (MKDT, 2410.02116, algorithm 1)."""

    name: Literal["mkdt"] = "mkdt"
    init: Literal["high_loss", "random", "k_means"] = "high_loss"
    iterations: Count = 5000
    inner_steps: int = Field(40, ge=1, le=10_000)
    expert_epochs: int = Field(2, ge=1, le=1000, description="epochs of an expert that one window spans")
    max_start_epoch: int = Field(2, ge=0, le=1000, description="windows begin at a whole epoch from 0 to this one")
    batch_size: int = Field(256, ge=1, le=65536, description="synthetic images an inner step sees")
    inner_momentum: float = Field(0.0, ge=0.0, lt=1.0)
    optimizer: Literal["sgd", "adam"] = "sgd"
    outer_momentum: float = Field(0.5, ge=0.0, lt=1.0)
    lr_images: NonNegative = 1000.0
    lr_targets: NonNegative = 1.0
    lr_rate: NonNegative = Field(1e-4, description="step size of the learned inner learning rate")
    initial_rate: Positive | None = Field(None, description="inner learning rate to begin from; the experts' own when absent")
    rates: Literal["one", "per_layer"] = Field(
        "one", description="one learned inner rate, or one for each layer; the latter serve the student they were learned with alone"
    )
    augment: Annotated[tuple[Augmentation, ...], AfterValidator(_distinct)] = Field(
        (),
        description="differentiable augmentation of the inner steps (DSA, 2102.08259): each step draws one of these and shows its whole"
        " batch through it; evaluation never augments. Saturation leaves grey images as they are; flip mirrors digits and letters too",
        examples=[["shift", "scale", "cutout"]],
    )
    precision: Literal["auto", "float32", "tf32", "bf16"] = Field(
        "auto",
        description="what matching multiplies in: TF32 on CUDA and float32 elsewhere (auto), or bfloat16, if its derivatives are first"
        " found to point where those of float32 do (cosine 0.99)",
    )


class RandomSpec(Spec):
    """Baseline: images drawn uniformly, with the teacher's targets."""

    name: Literal["random"] = "random"


class KMeansSpec(Spec):
    """Baseline: the images nearest to the k-means centres of the targets, with the teacher's targets."""

    name: Literal["k_means"] = "k_means"


class HighLossSpec(Spec):
    """Baseline: the images that experts regress worst after one epoch (MKDT, section 4.3), with the teacher's targets."""

    name: Literal["high_loss"] = "high_loss"


MethodSpec = Annotated[MKDTSpec | RandomSpec | KMeansSpec | HighLossSpec, Field(discriminator="name")]


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


class EvaluateSpec(Spec):
    """Pre-train encoders on a synthetic set and on baselines of the same size and targets; compare them on labelled tasks."""

    synthetic_set: str = Field(
        min_length=1, max_length=500, description="id of a synthetic set, or the folder of a finished run (command line)"
    )
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
    seed: Seed = 0


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
    seed: Seed = 0

    @field_validator("teacher", mode="before")
    @classmethod
    def _is_trained(cls, teacher: Any) -> Any:
        given = teacher.get("ssl") == "given" if isinstance(teacher, dict) else isinstance(teacher, GivenTeacherSpec)
        if given:
            raise ValueError("a given teacher has no recorded run: train one with ssl dino, barlow_twins or simclr")
        return teacher


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the fields of `over`, nested; a nested table that names another kind (`ssl`, `name`) replaces the whole."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            same_kind = all(value.get(tag, old.get(tag)) == old.get(tag) for tag in ("ssl", "name"))
            out[key] = merge(old, value) if same_kind else value
        else:
            out[key] = value
    return out
