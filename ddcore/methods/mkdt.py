"""MKDT: match the trajectories of knowledge-distillation experts (Joshi, Ni, Mirzasoleiman, ICLR 2025, 2410.02116).

Departures from the authors' code, each of them a repair: snapshots are clones, every image keeps its own target, the gradient is
the exact adjoint in constant graph memory, targets are standardised per dimension, and the last iterate is kept in pixel units.
"""

from ddcore.methods.inputs import Material
from ddcore.methods.matched import match_paths
from ddcore.specs import MKDTSpec
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task


def distill(task: Task, material: Material) -> SyntheticSet:
    return match_paths(task, material, MKDTSpec(**task.params["method"]))
