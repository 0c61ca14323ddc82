"""Methods: how a synthetic set is made."""

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ddcore.specs.fields import Augmentation, Count, NonNegative, Positive, Spec, distinct

MATCHING = ("mkdt", "mkdt_plus", "dino_tm")  # names of the methods that match trajectories


class MatchingSpec(Spec):
    """What all methods share that match trajectories: windows, inner run, outer optimiser."""

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

    @property
    def horizon(self) -> int:
        """SGD steps of pre-training that the windows cover: laid end to end up to the last matched epoch."""
        return math.ceil(self.inner_steps * (self.max_start_epoch + self.expert_epochs) / self.expert_epochs)


class MKDTSpec(MatchingSpec):
    """Matching knowledge-distillation trajectories (MKDT, 2410.02116, algorithm 1)."""

    name: Literal["mkdt"] = "mkdt"


ExpertPath = Literal["staged", "final", "teacher", "student"]


class ImprovedSpec(MatchingSpec):
    """What `mkdt_plus` and `dino_tm` add to MKDT, each part with a switch of its own; equations in `ddcore.matching.outer`, `.windows`."""

    continuous: bool = Field(True, description="windows begin anywhere between two epochs: experts' paths are interpolated")
    lag: bool = Field(True, description="averaged paths (experts.ema) are read later by as much as they lag behind")
    normalise: Literal["whole", "layers"] = Field(
        "whole", description="the distance to the goal in units of the expert's move: of all parameters, or of each layer's own"
    )
    displacement: NonNegative = Field(0.0, description="weight of one minus the cosine between the inner run's move and the expert's")
    gap: NonNegative = Field(
        0.0,
        description="weight of one minus the cosine between where the inner run is heading at its end, away from its own moving average,"
        " and the expert's move over the epoch before its goal",
    )
    functional: NonNegative = Field(0.0, description="weight of the error on real images, whose labels are not read, after the inner run")
    functional_goal: Literal["expert", "teacher"] = Field(
        "teacher",
        description="from whose outputs on the real images that error is taken: the expert's at its goal, or the teacher's",
    )
    functional_images: int = Field(256, ge=1, le=65536, description="real images it sees in an iteration")
    own_starts: float = Field(
        0.0, ge=0.0, le=1.0,
        description="part of the windows that begin where training on the set itself leads from the expert's first snapshot, as it will"
        " after distillation, and not on the expert's path, from which that training drifts away",
    )  # fmt: skip
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the outer step sizes: constant, or a half cosine to zero, so that the set ends where its windows agree"
    )
    looks: int = Field(
        0, ge=0, le=1000,
        description="how often, evenly spaced, networks are trained on the set as it was matched, and compared with the teacher on real"
        " images; the set that taught them best is kept. No label is read. 0: never, and the last set is kept",
    )  # fmt: skip
    growing: float = Field(0.0, ge=0.0, le=1.0, description="part of the iterations over which the latest start grows to its maximum")
    threshold: Positive | None = Field(
        None,
        description="windows that end further from the goal than this, in units of the expert's move, give no gradient; 1: no nearer",
    )


class MKDTPlusSpec(ImprovedSpec):
    """MKDT (2410.02116) with a smoother path to follow and a loss that is closer to its use; with any teacher."""

    name: Literal["mkdt_plus"] = "mkdt_plus"


class DinoTMSpec(ImprovedSpec):
    """Matching the trajectories of a DINO run (2104.14294): of students that follow its teacher stage by stage, or the run's own."""

    name: Literal["dino_tm"] = "dino_tm"
    path: ExpertPath = Field(
        "staged",
        description="what is matched: experts that regress the DINO teacher as it was at `stages` moments of its run, one after another;"
        " experts of the finished teacher; or the student network's own DINO run by the recipe of `teacher`, its teacher's parameters or"
        " its student's: then only num, per_shard and storage of `experts` are read, and `initial_rate` should be given: experts.lr is no"
        " guide to it",
    )
    stages: int = Field(4, ge=2, le=100, description="moments of the DINO run; read only with path staged")


class RandomSpec(Spec):
    """Baseline: images drawn uniformly, with the teacher's targets."""

    name: Literal["random"] = "random"


class KMeansSpec(Spec):
    """Baseline: the images nearest to the k-means centres of the targets, with the teacher's targets."""

    name: Literal["k_means"] = "k_means"


class HighLossSpec(Spec):
    """Baseline: the images that experts regress worst after one epoch (MKDT, section 4.3), with the teacher's targets."""

    name: Literal["high_loss"] = "high_loss"


MethodSpec = Annotated[MKDTSpec | MKDTPlusSpec | DinoTMSpec | RandomSpec | KMeansSpec | HighLossSpec, Field(discriminator="name")]
