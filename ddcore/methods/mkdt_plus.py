"""mkdt_plus: MKDT with averaged paths read without their lag, windows that begin anywhere, and further outer losses; any teacher."""

from ddcore.methods.inputs import Material
from ddcore.methods.matched import match_paths
from ddcore.specs import MKDTPlusSpec
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task


def distill(task: Task, material: Material) -> SyntheticSet:
    return match_paths(task, material, MKDTPlusSpec(**task.params["method"]))
