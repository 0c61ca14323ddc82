"""Methods: how a synthetic set is made."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ddcore.specs.fields import Augmentation, Count, NonNegative, Positive, Spec, distinct


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
    augment: Annotated[tuple[Augmentation, ...], AfterValidator(distinct)] = Field(
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
