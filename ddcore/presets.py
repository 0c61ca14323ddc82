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
}
