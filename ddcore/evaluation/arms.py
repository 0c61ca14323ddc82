"""The arms of a comparison: which set each pre-trains on, and at which rate."""

import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ddcore.errors import DdcoreError
from ddcore.networks.flat import FlatNetwork, build_student
from ddcore.specs import StudentSpec
from ddcore.synthetic import FILE, SyntheticSet, load_synthetic
from ddcore.task import Task


@dataclass(frozen=True)
class Arm:
    """One line of the comparison; data and rate are None of the untrained network. by_layer: rates [num_layers] to use in its stead."""

    name: str
    data: SyntheticSet | None
    rate: float | None
    by_layer: Tensor | None = None


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
    rates.json for baselines. Layers' learned rates serve the student that they were learned with; others get their geometric mean.
    """
    params, sets = task.params, load_sets(task)
    given = params["pretrain"]["lr"]
    tuned = _tuned(task)
    arms = []
    for name, data in sets.items():
        if name == "synthetic":
            rate, by_layer = given or data.rate, None if given else _rates_for(params["network"], data)
            arms.append(Arm(name, data, rate, by_layer))
            if params["rounding"]:
                arms.append(Arm("synthetic_8bit", data.quantised(), rate, by_layer))
        else:
            arms.append(Arm(name, data, given or tuned[name]))
    if params["untrained"]:
        arms.append(Arm("none", None, None))
    return arms


def _rates_for(fields: dict[str, Any], data: SyntheticSet) -> Tensor | None:
    """The layers' learned rates, if the set has them and `fields` is the student that they were learned with."""
    learned_with = data.info.get("student")
    same = learned_with is not None and StudentSpec(**learned_with) == StudentSpec(**fields)
    return data.learned_lr if same and data.learned_lr.ndim else None


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
    """How tables name an encoder: `convnet-3x128` has three blocks of 128 channels; `resnet18-64` begins with 64."""
    size = f"{fields['depth']}x{fields['width']}" if fields["name"] in ("convnet", "vit_tiny") else fields["width"]
    return f"{fields['name']}-{size}"
