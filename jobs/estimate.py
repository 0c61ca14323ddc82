"""How much disk the files of a step will take, from its parameters alone: a plan's cost before anything runs."""

import math
from collections.abc import Mapping
from typing import Any

from ddcore.networks.shapes import expected_shapes
from ddcore.networks.student_sizes import num_parameters
from ddcore.specs import BackboneSpec, DistillSpec, GivenTeacherSpec, TeacherSpec

FLOAT = 4  # bytes
SMALL = 200_000  # bytes of tables, JSON and pictures
OBSERVATION = 4_000_000  # bytes of its dozen figures, each as PNG, SVG and JSON, and its table
PAIR = 2_000  # bytes of what a ranking says of each pair of variants
UNKNOWN_PARAMETERS = 30_000_000  # of a timm backbone, which only timm can count
UNKNOWN_FEATURES = 1024
VIT_FEATURES = 192  # of vit_tiny_patch4

Shape = tuple[int, int, int]


def step_bytes(kind: str, params: Mapping[str, Any], spec: DistillSpec, num_images: int, image_shape: Shape) -> int:
    """Bytes that one step of a distillation of `num_images` images leaves; within a factor of two for known backbones."""
    pixels, dim = math.prod(image_shape), feature_dim(spec.teacher.backbone, image_shape)
    if kind == "dataset":
        return num_images * (pixels + 8) + SMALL
    if kind == "teacher":
        return (FLOAT + _recorded(spec.teacher)) * backbone_parameters(spec.teacher.backbone, image_shape) + SMALL
    if kind == "observe":
        return OBSERVATION
    if kind == "ranking":
        return SMALL + PAIR * len(params["variants"]) ** 2
    if kind == "targets":
        return num_images * dim * FLOAT * int(params.get("stages", 1)) + SMALL
    if kind == "experts":
        later = FLOAT if spec.experts.storage == "float32" else FLOAT // 2  # bytes of a number in the snapshots after the first
        return int(params["count"]) * (FLOAT + later * int(params["epochs"])) * num_parameters(spec.student, image_shape, dim) + SMALL
    one_set = spec.num_images * (pixels + dim) * FLOAT + SMALL
    if kind == "distill":
        return one_set
    return 4 * one_set if kind == "export" else SMALL


def _recorded(teacher: TeacherSpec) -> int:
    """Bytes of the run's snapshots for each parameter."""
    if isinstance(teacher, GivenTeacherSpec):
        return 0
    networks = 2 if teacher.ssl == "dino" else 1
    if teacher.storage == "float32":
        return networks * teacher.num_snapshots * FLOAT
    return FLOAT + (networks * teacher.num_snapshots - 1) * FLOAT // 2  # the first of the network that is kept is whole


def backbone_parameters(backbone: BackboneSpec, image_shape: Shape) -> int:
    """Numbers in a backbone's state dict."""
    channels, height, width = image_shape
    shapes = expected_shapes(backbone, channels, (height, width))
    return UNKNOWN_PARAMETERS if shapes is None else sum(math.prod(shape) for shape in shapes.values())


def feature_dim(backbone: BackboneSpec, image_shape: Shape) -> int:
    """Length of a backbone's features."""
    if backbone.name == "resnet18":
        return 8 * backbone.width
    if backbone.name == "convnet":
        return backbone.width * (image_shape[1] >> backbone.depth) * (image_shape[2] >> backbone.depth)
    return VIT_FEATURES if backbone.name == "vit_tiny_patch4" else UNKNOWN_FEATURES
