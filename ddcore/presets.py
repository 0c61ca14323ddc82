"""Named starting points: plain tables of fields, merged under whatever the user gives. Torch-free."""

from typing import Any

_BARLOW_TWINS: dict[str, Any] = {
    "ssl": "barlow_twins",
    "backbone": {"name": "resnet18"},
    "epochs": 400,
    "batch_size": 256,
    "lr": 1e-3,
    "projector_dim": 2048,
    "min_knn_accuracy": 30.0,
}
_MKDT: dict[str, Any] = {
    "name": "mkdt",
    "init": "high_loss",
    "iterations": 5000,
    "inner_steps": 40,
    "expert_epochs": 2,
    "max_start_epoch": 1,
    "batch_size": 256,
    "optimizer": "sgd",
    "outer_momentum": 0.5,
    "lr_images": 1000.0,
    "lr_targets": 1.0,
    "lr_rate": 1e-4,
    "initial_rate": 0.1,
}


def _mkdt(dataset: str, num_images: int, **method: Any) -> dict[str, Any]:
    """MKDT's published setting (2410.02116, appendix; the authors' scripts): for a GPU, hours.

    Two departures: our own teacher is trained here, where the authors took a checkpoint; and targets are standardised. Their start
    epochs exclude the last number, ours include it.
    """
    experts = {"num": 100, "per_shard": 10, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 256}
    student = {"depth": 3, "width": 128}
    return {
        "dataset": dataset,
        "num_images": num_images,
        "teacher": _BARLOW_TWINS,
        "student": student,
        "experts": experts,
        "method": _MKDT | method,
    }


# What both DINO recipes share, from the paper's code (2104.14294, main_dino.py; its appendix D for the schedules) but where said.
_DINO: dict[str, Any] = {
    "ssl": "dino",
    "warmup_epochs": 10,
    "student_temperature": 0.1,
    "warmup_teacher_temperature": 0.04,
    "teacher_temperature": 0.07,
    "hidden_dim": 2048,
    "bottleneck_dim": 256,
    "out_dim": 4096,  # solo-learn's for CIFAR and a ResNet-18; the paper's 65536 are for ImageNet
    "freeze_last_layer_epochs": 1,
    "local_crops": 8,
    # Colours as in the paper and for CIFAR in solo-learn (cifar/augmentations/asymmetric.yaml), which leaves out the blur there and
    # solarizes one of two views with 0.2: here every view with half of that.
    "augment": {"crop_scale": [0.4, 1.0], "jitter": 0.8, "jitter_strength": 0.5, "grayscale": 0.2, "blur": 0.0, "solarize": 0.1},
    "snapshots": 100,
    "storage": "gap",
}
_DINO_RESNET: dict[str, Any] = _DINO | {
    "backbone": {"name": "resnet18"},
    "batch_size": 256,
    "lr": 1e-3,  # ours, for AdamW; solo-learn has LARS
    "weight_decay": 1e-4,
    "momentum": 0.9995,  # this and the warm-up: solo-learn (cifar/dino.yaml, methods/dino.py)
    "warmup_teacher_epochs": 50,
    "local_crop_scale": [0.05, 0.4],
}
# DINOv2's losses (2304.07193, section 4; ssl_default_config.yaml) on DINO's schedules: Sinkhorn, KoLeo, masked patches, the same head.
_DINO_VIT: dict[str, Any] = _DINO | {
    "backbone": {"name": "vit_tiny_patch4"},
    "batch_size": 512,
    "lr": 1e-3,  # 5e-4 for each 256 images
    "weight_decay": 0.04,  # where the paper's schedule begins; constant here
    "momentum": 0.996,
    "warmup_teacher_epochs": 30,
    "centering": "sinkhorn",
    "koleo": 0.1,
    "masked_patches": 1.0,
    "mask_ratio": [0.1, 0.5],
    "local_crop_scale": [0.05, 0.32],
    "augment": _DINO["augment"] | {"crop_scale": [0.32, 1.0]},
}


def _dino(recipe: dict[str, Any], side: int) -> dict[str, Any]:
    """A DINO run on images of `side` pixels and the matching of its stages: for a GPU, hours.

    Local crops have about the paper's share of a side, 96 of 224 pixels, in whole patches. The student is MKDT's for such images
    (2410.02116); matching is as in the preset `demo`, and has not been tuned at this size.
    """
    method = {name: value for name, value in PRESETS["demo"]["method"].items() if name not in ("name", "iterations", "max_start_epoch")}
    fields: dict[str, Any] = {
        "num_images": 1000,
        "teacher": recipe | {"epochs": 400 if side == 32 else 200, "local_crop_size": 16 if side == 32 else 28},
        "student": {"depth": 3 if side == 32 else 4, "width": 128},
        "experts": {"num": 100, "per_shard": 10, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 256, "ema": 0.99},
        "method": method | {"name": "dino_tm", "iterations": 5000, "max_start_epoch": 6, "batch_size": 256, "initial_rate": 1.0},
    }
    return fields | ({"dataset": "cifar10-train"} if side == 32 else {})  # no built-in data set has images of 64 pixels


PRESETS: dict[str, dict[str, Any]] = {
    # Seconds on one core: proves the wiring, not the science.
    "smoke": {
        "dataset": "digits-train",
        "num_images": 20,
        "teacher": {
            "ssl": "dino",
            "backbone": {"name": "convnet", "width": 16, "depth": 2},
            "epochs": 2,
            "warmup_epochs": 0,
            "out_dim": 64,
            "hidden_dim": 64,
            "bottleneck_dim": 32,
            "snapshots": 6,
            "augment": {"flip": False, "jitter": 0.0, "grayscale": 0.0},
        },
        "student": {"depth": 2, "width": 8},
        "experts": {"num": 2, "per_shard": 1, "batch_size": 128},
        "method": {"name": "mkdt", "iterations": 10, "inner_steps": 5, "expert_epochs": 1, "max_start_epoch": 1, "lr_images": 1.0},
    },
    # A minute or two on two cores: digits, twenty images, a DINO teacher; see docs/small-scale.md for how it was chosen.
    "demo": {
        "dataset": "digits-train",
        "num_images": 20,
        "teacher": {
            "ssl": "dino",
            "backbone": {"name": "convnet", "width": 32, "depth": 2},
            "epochs": 60,
            "warmup_epochs": 4,
            "out_dim": 256,
            "hidden_dim": 256,
            "bottleneck_dim": 64,
            "momentum": 0.99,
            "snapshots": 60,
            "augment": {"crop_scale": [0.4, 1.0], "flip": False, "jitter": 0.0, "grayscale": 0.0, "noise": 0.05},
            "min_knn_accuracy": 90.0,
        },
        "student": {"depth": 2, "width": 8},
        "experts": {"num": 32, "per_shard": 8, "batch_size": 128, "lr": 0.5, "momentum": 0.9, "ema": 0.9},
        "method": {
            "name": "mkdt",
            "init": "k_means",
            "iterations": 1500,
            "inner_steps": 20,
            "expert_epochs": 2,
            "max_start_epoch": 8,
            "optimizer": "adam",
            "outer_momentum": 0.9,
            "lr_images": 0.01,
            "lr_targets": 0.01,
            "lr_rate": 0.01,
            "initial_rate": 2.0,
        },
    },
    # Minutes on two cores for 50,000 images of 32x32: everything runs; the teacher, at this budget, is the weak part.
    "cpu-small": {
        "num_images": 100,
        "teacher": {
            "ssl": "simclr",
            "backbone": {"name": "resnet18", "width": 8},
            "epochs": 2,
            "batch_size": 256,
            "lr": 2e-3,
            "warmup_epochs": 0,
            "temperature": 0.2,
            "augment": {"crop_scale": [0.3, 1.0], "jitter_strength": 0.4},
        },
        "student": {"depth": 3, "width": 16},
        "experts": {"num": 8, "per_shard": 2, "batch_size": 128, "lr": 0.3, "momentum": 0.9, "ema": 0.98},
        "method": {
            "name": "mkdt",
            "init": "k_means",
            "iterations": 400,
            "inner_steps": 10,
            "expert_epochs": 1,
            "max_start_epoch": 1,
            "batch_size": 32,
            "optimizer": "adam",
            "outer_momentum": 0.9,
            "lr_images": 0.02,
            "lr_targets": 0.02,
            "lr_rate": 0.01,
            "initial_rate": 1.0,
        },
    },
    "mkdt-cifar10-2pct": _mkdt("cifar10-train", 1000),
    "mkdt-cifar10-5pct": _mkdt("cifar10-train", 2500, lr_images=10_000.0, max_start_epoch=4),
    "mkdt-cifar100-2pct": _mkdt("cifar100-train", 1000),
    "mkdt-cifar100-5pct": _mkdt("cifar100-train", 2500, lr_images=10_000.0, max_start_epoch=4),
}
PRESETS |= {f"dino-resnet18-{side}": _dino(_DINO_RESNET, side) for side in (32, 64)}
PRESETS |= {f"dino-vit-{side}": _dino(_DINO_VIT, side) for side in (32, 64)}
