"""k-means: for each centre of the targets, the image nearest to it. The hard control when sets are small."""

import numpy as np
import torch

from ddcore.events import Reporter
from ddcore.ledger import Ledger
from ddcore.methods.clusters import Matrix, cluster
from ddcore.methods.inputs import Material
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task

LAYOUT = "k-means 1"  # of checkpoints


def distill(task: Task, material: Material) -> SyntheticSet:
    ledger, targets, count = Ledger(task.work, LAYOUT, task.reporter), material.targets, task.params["num_images"]
    # One initialisation: Lloyd from k-means++ is steady enough, and seeds of the evaluation average over the rest.
    centres = cluster(targets, count, task.params["seed"], ledger, task.reporter).numpy()
    return material.subset(task, ledger.once(lambda: nearest(targets.double().numpy(), centres, ledger, task.reporter)))


def nearest(points: Matrix, centres: Matrix, ledger: Ledger, reporter: Reporter) -> torch.Tensor:
    """For each centre [k, d], in turn, the nearest of points [n, d] that no earlier centre took: int64 [k], all different.

    The part in hand of `ledger`.
    """
    squared = (points**2).sum(1)
    found = ledger.resume()
    chosen: list[int] = found[1]["chosen"] if found else []
    ledger.hold(lambda: ({}, {"chosen": chosen}))
    taken = np.zeros(len(points), dtype=bool)
    taken[chosen] = True
    for centre in centres[len(chosen) :]:
        reporter.progress(len(chosen), len(centres), "images", "the image nearest to each centre")
        ledger.offer()
        distance = squared - 2.0 * points @ centre
        distance[taken] = np.inf
        best = int(distance.argmin())
        taken[best] = True
        chosen.append(best)
    return torch.tensor(chosen)
