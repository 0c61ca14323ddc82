"""The arms of a comparison: which set each pre-trains on, and at which rate."""

import json
from dataclasses import dataclass
from typing import Any

from ddcore.errors import DdcoreError
from ddcore.networks.flat import FlatNetwork, build_student
from ddcore.specs import StudentSpec
from ddcore.synthetic import FILE, SyntheticSet, load_synthetic
from ddcore.task import Task


@dataclass(frozen=True)
class Arm:
    """One line of the comparison; data and rate are None of the untrained network."""

    name: str
    data: SyntheticSet | None
    rate: float | None


def load_sets(task: Task) -> dict[str, SyntheticSet]:
    """The sets of `params.arms` from the folders of input `sets`, in their order. Raises `DdcoreError` if they do not compare."""
    names = task.params["arms"]
    sets = {name: load_synthetic(folder / FILE) for name, folder in zip(names, task.inputs["sets"], strict=True)}
    sizes = {name: (tuple(data.images.shape), tuple(data.targets.shape)) for name, data in sets.items()}
    if len(set(sizes.values())) > 1:
        raise DdcoreError("missing_input", f"the sets to compare differ in size: {sizes}", "run the evaluation again from its spec")
    return sets


def arms_of(task: Task) -> list[Arm]:
    """The arms of an evaluate step.

    A rate is `pretrain.lr` if given; else the set's learned rate for `synthetic` and `synthetic_8bit`, and the tuned one of
    rates.json for baselines.
    """
    params, sets = task.params, load_sets(task)
    given = params["pretrain"]["lr"]
    tuned = _tuned(task)
    arms = []
    for name, data in sets.items():
        if name == "synthetic":
            rate = given or float(data.learned_lr)
            arms.append(Arm(name, data, rate))
            if params["rounding"]:
                arms.append(Arm("synthetic_8bit", data.quantised(), rate))
        else:
            arms.append(Arm(name, data, given or tuned[name]))
    if params["untrained"]:
        arms.append(Arm("none", None, None))
    return arms


def _tuned(task: Task) -> dict[str, float]:
    if not task.inputs.get("rates"):
        return {}
    rates: dict[str, float] = json.loads((task.input("rates") / "rates.json").read_text())["rates"]
    return rates


def shape_of(data: SyntheticSet) -> tuple[int, int, int]:
    """(channels, height, width) of a set's images."""
    channels, height, width = data.images.shape[1:]
    return channels, height, width


def network_for(fields: dict[str, Any], data: SyntheticSet) -> FlatNetwork:
    """The encoder of `fields` (a `StudentSpec`) for the images and targets of `data`."""
    return build_student(StudentSpec(**fields), shape_of(data), data.targets.shape[1])


def network_name(fields: dict[str, Any]) -> str:
    """How tables name an encoder: `convnet-3x128` has three blocks of 128 channels."""
    return f"{fields['name']}-{fields['depth']}x{fields['width']}"
