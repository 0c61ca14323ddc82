"""Teachers: how an encoder is trained without labels, or where a finished one comes from."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ddcore.specs.fields import Count, NonNegative, Positive, Scale, Spec

MOST_SNAPSHOTS = 1000  # of a run


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
    snapshots: int = Field(
        20, ge=2, le=MOST_SNAPSHOTS, description="parameter snapshots kept of the run, evenly spaced, for its trajectory"
    )
    snapshot_every: Positive | None = Field(
        None,
        description="epochs between two snapshots, in place of `snapshots`: 0.25 keeps four an epoch; the last step is kept always",
    )
    storage: Literal["float32", "gap"] = Field(
        "float32",
        description="snapshots kept whole; or the DINO teacher's (of other runs the network's) 16-bit differences and, for DINO, the"
        " student's 16-bit gap to it: half the size, with an error that is measured and reported",
    )
    gradient_batches: int = Field(
        0,
        ge=0,
        le=1000,
        description="batches, at least 2, whose gradients are compared a few times during the run, beside its own: each costs about a"
        " training step; 0 measures nothing, and 16 is plenty",
    )
    min_knn_accuracy: float = Field(0.0, ge=0.0, le=100.0, description="percent; a labelled run below it fails as collapsed")
    amp: bool = Field(True, description="bfloat16 autocast on CUDA")
    cpu_amp: bool = Field(
        False,
        description="the same on a CPU: less time for a ResNet if the processor multiplies bfloat16 (avx512_bf16, AMX), more for a ConvNet",
    )
    compile: bool = Field(False, description="torch.compile the backbone: up to a minute to begin with, for less time a step in long runs")

    @property
    def num_snapshots(self) -> int:
        """How many are recorded; fewer if the run has fewer steps."""
        return self.snapshots if self.snapshot_every is None else 1 + math.ceil(self.epochs / self.snapshot_every)

    @model_validator(mode="after")
    def _records_no_more_than_can_be_read(self) -> Self:
        if self.num_snapshots > MOST_SNAPSHOTS:
            least = math.ceil(1000 * self.epochs / (MOST_SNAPSHOTS - 1)) / 1000
            raise ValueError(
                f"{self.num_snapshots:,} snapshots are more than the {MOST_SNAPSHOTS:,} that can be looked at together:"
                f" give a snapshot_every of at least {least} for {self.epochs} epochs"
            )
        return self

    @field_validator("gradient_batches")
    @classmethod
    def _one_batch_has_no_scatter(cls, batches: int) -> int:
        if batches == 1:
            raise ValueError("one gradient differs from no other: give 0, or at least 2")
        return batches


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
    masked_patches: NonNegative = Field(
        0.0,
        description="weight of the masked-patch loss (iBOT, 2111.07832; in DINOv2, 1): from half of the global views the student does not"
        " see some patches, and says what the teacher makes of them; with backbone vit_tiny_patch4 only",
    )
    mask_ratio: Scale = Field((0.1, 0.5), description="share of a view's patches that are hidden; read with masked_patches only")
    local_crops: int = Field(0, ge=0, le=16, description="views of small parts, seen by the student only (multi-crop)")
    local_crop_scale: Scale = (0.05, 0.4)
    local_crop_size: int | None = Field(
        None,
        ge=4,
        description="pixels of a local view's shorter side, for backbones that read images of any size (resnet18, vit_tiny_patch4):"
        " half of the images' is usual, and costs about a quarter of the time; resized to full size when absent",
    )
    freeze_last_layer_epochs: int = Field(1, ge=0)

    def local_view(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of local views of such images: as tall and wide as they are, in proportion."""
        if self.local_crop_size is None:
            return height, width
        ratio = self.local_crop_size / min(height, width)
        return round(height * ratio), round(width * ratio)


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
