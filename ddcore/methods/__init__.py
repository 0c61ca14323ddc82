"""Methods: one file each, and the table of them in plain sight. A method turns real images and targets into a set."""

from collections.abc import Callable
from typing import Any

from ddcore.methods import dino_tm, high_loss, k_means, mkdt, mkdt_plus, random_subset
from ddcore.methods.inputs import Material
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task

METHODS: dict[str, Callable[[Task, Material], SyntheticSet]] = {
    "mkdt": mkdt.distill,
    "mkdt_plus": mkdt_plus.distill,
    "dino_tm": dino_tm.distill,
    "random": random_subset.distill,
    "k_means": k_means.distill,
    "high_loss": high_loss.distill,
}


def run_method(task: Task) -> dict[str, Any]:
    """Step `distill`: writes `synthetic.safetensors` (and `history.json` if anything was optimised)."""
    material = Material.of(task)
    made = METHODS[task.params["method"]["name"]](task, material)
    made.save(task.out / "synthetic.safetensors")
    return {
        "method": made.info["method"]["name"],
        "num_images": len(made.images),
        "image_shape": list(made.images.shape[1:]),
        "target_dim": made.targets.shape[1],
        "learned_lr": made.rate,
        "learned_lrs": made.rates,
        "image_range": made.info["image_range"],
    }
