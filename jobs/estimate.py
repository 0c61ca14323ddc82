"""How much disk the files of a step will take, from its parameters alone: a plan's cost before anything runs."""

import math
from collections.abc import Mapping
from typing import Any

from ddcore.networks.shapes import expected_shapes
from ddcore.networks.student_sizes import num_parameters
from ddcore.specs import BackboneSpec, DistillSpec, GivenTeacherSpec

FLOAT = 4  # bytes
SMALL = 200_000  # bytes of tables, JSON and pictures
OBSERVATION = 4_000_000  # bytes of its dozen figures, each as PNG, SVG and JSON, and its table
UNKNOWN_PARAMETERS = 30_000_000  # of a timm backbone, which only timm can count
UNKNOWN_FEATURES = 1024

Shape = tuple[int, int, int]


def step_bytes(kind: str, params: Mapping[str, Any], spec: DistillSpec, num_images: int, image_shape: Shape) -> int:
    """Bytes that one step of a distillation of `num_images` images leaves; within a factor of two for known backbones."""
    pixels, dim = math.prod(image_shape), feature_dim(spec.teacher.backbone, image_shape)
    if kind == "dataset":
        return num_images * (pixels + 8) + SMALL
    if kind == "teacher":
        snapshots = (
            1 if isinstance(spec.teacher, GivenTeacherSpec) else 1 + spec.teacher.snapshots * (2 if spec.teacher.ssl == "dino" else 1)
        )
        return snapshots * backbone_parameters(spec.teacher.backbone, image_shape) * FLOAT + SMALL
    if kind == "observe":
        return OBSERVATION
    if kind == "targets":
        return num_images * dim * FLOAT * int(params.get("stages", 1)) + SMALL
    if kind == "experts":
        later = FLOAT if spec.experts.storage == "float32" else FLOAT // 2  # bytes of a number in the snapshots after the first
        return int(params["count"]) * (FLOAT + later * int(params["epochs"])) * num_parameters(spec.student, image_shape, dim) + SMALL
    one_set = spec.num_images * (pixels + dim) * FLOAT + SMALL
    if kind == "distill":
        return one_set
    return 4 * one_set if kind == "export" else SMALL


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
    return UNKNOWN_FEATURES
