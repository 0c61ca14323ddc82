"""dino_tm: match the trajectories of a DINO run, as they are or as students follow them; the losses of `mkdt_plus`.

Which path is matched is decided before: the step `experts` records it (see `ddcore.specs.DinoTMSpec.path`).
"""

from ddcore.methods.inputs import Material
from ddcore.methods.matched import match_paths
from ddcore.specs import DinoTMSpec
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task


def distill(task: Task, material: Material) -> SyntheticSet:
    return match_paths(task, material, DinoTMSpec(**task.params["method"]))
