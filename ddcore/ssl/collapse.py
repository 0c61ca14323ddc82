"""How DINO collapses, in two ways (2104.14294, section 5.3) that its outputs show, often while its features still look well; torch-free."""

import math
from typing import Literal

Kind = Literal["uniform", "single"]
NEARLY = 0.02  # of the largest possible entropy: closer than this to one of its ends is the end

WORDS: dict[Kind, str] = {
    "uniform": "DINO's output ended nearly uniform over its prototypes for every image",
    "single": "DINO's output ended on single prototypes, with nothing left between student and teacher: most likely the same one for"
    " all images",
}
ADVICE: dict[Kind, str] = {
    "uniform": "sharpen: lower teacher.teacher_temperature; or lower teacher.lr, or raise teacher.momentum",
    "single": "centre more: lower teacher.center_momentum, set teacher.centering to sinkhorn, or raise teacher.teacher_temperature;"
    " or lower teacher.lr",
}


def collapse_of(entropy: float, kl: float, out_dim: int) -> Kind | None:
    """Which way a run's last mean entropy of the teacher's distributions and mean KL divergence (nats) say it collapsed; None if not.

    With K = `out_dim` prototypes the entropy lies from 0 to log K. At log K nothing tells images apart. Near 0 each image has one
    prototype, which is as it should be where prototypes differ; a KL near 0 as well says that no view is hard to tell, as when all
    share one.
    """
    largest = math.log(out_dim)
    if entropy > (1 - NEARLY) * largest:
        return "uniform"
    return "single" if max(entropy, kl) < NEARLY * largest else None
