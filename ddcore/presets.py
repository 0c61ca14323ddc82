"""Named starting points: plain tables of fields, merged under whatever the user gives. Torch-free."""

from typing import Any

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
            "snapshots": 4,
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
}
