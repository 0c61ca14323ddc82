"""Students and their experts: the networks whose trajectories are matched, and the runs that leave these."""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ddcore.specs.fields import NonNegative, Positive, Spec
from ddcore.specs.teachers import AugmentSpec

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
