"""k-means: for each centre of the targets, the image nearest to it. The hard control when sets are small."""

import numpy as np
import torch
from sklearn.cluster import KMeans

from ddcore.methods.inputs import Material
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task


def distill(task: Task, material: Material) -> SyntheticSet:
    points = material.targets.double().numpy()
    # One initialisation: Lloyd from k-means++ is steady enough, and seeds of the evaluation average over the rest.
    centres = KMeans(task.params["num_images"], n_init=1, random_state=task.params["seed"]).fit(points).cluster_centers_
    return material.subset(task, nearest(points, centres))


def nearest(points: np.ndarray, centres: np.ndarray) -> torch.Tensor:
    """For each centre [k, d], in turn, the nearest of points [n, d] that no earlier centre took: int64 [k], all different."""
    squared = (points**2).sum(1)
    taken = np.zeros(len(points), dtype=bool)
    chosen = []
    for centre in centres:
        distance = squared - 2.0 * points @ centre
        distance[taken] = np.inf
        best = int(distance.argmin())
        taken[best] = True
        chosen.append(best)
    return torch.tensor(chosen)
