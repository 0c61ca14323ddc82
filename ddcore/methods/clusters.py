"""scikit-learn's k-means (k-means++ with several candidates for a centre, then Lloyd), which can be stopped, and goes on where it was.

On one thread the centres are those of `KMeans(count, n_init=1, random_state=seed)`, bit for bit. On several they are so but for the
rounding of their sums, which there are added in the order in which threads happen to end, and here in the order of the points.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor

from ddcore.events import Reporter
from ddcore.ledger import Ledger

ITERATIONS = 300  # at most
TOLERANCE = 1e-4  # of the points' mean variance: centres that move less, squared and in total, have arrived
BLOCK = 256  # points that scikit-learn's threads take at a time: parts that are multiples of it are computed as the whole is
LEAST_BLOCKS = 16  # of a part: work for as many threads
AT_ONCE = 1 << 34  # products of a part, beyond that: about a second of two cores

Matrix = NDArray[np.float64]


def cluster(points: Tensor, count: int, seed: int, ledger: Ledger, reporter: Reporter) -> Tensor:
    """Centres float64 [count, d] of points [n, d] on the CPU: two parts of `ledger`."""
    exact: Matrix = points.double().numpy()
    tolerance, mean = float(exact.var(axis=0).mean() * TOLERANCE), exact.mean(axis=0)
    exact = exact - mean  # distances are more exact near the origin
    first: Tensor = ledger.once(lambda: _first(exact, count, seed, ledger, reporter))
    centred = torch.from_numpy(exact)
    return ledger.once(lambda: _lloyd(centred, centred[first], tolerance, ledger, reporter)) + torch.from_numpy(mean)


def _first(points: Matrix, count: int, seed: int, ledger: Ledger, reporter: Reporter) -> Tensor:
    """k-means++: the numbers [count] of points that are spread well; of each few candidates, the one that brings centres nearest."""
    random, candidates = np.random.RandomState(seed), 2 + int(np.log(count))
    norms, ones = np.einsum("ij,ij->i", points, points), np.ones(len(points))
    chosen = [int(random.choice(len(points), p=ones / len(points)))]
    near = _squared_distances(points[chosen], points, norms)  # from each point to the centre nearest to it
    potential = float((near @ ones)[0])
    if found := ledger.resume():
        near, chosen, potential = found[0]["near"].numpy(), found[1]["chosen"], found[1]["potential"]
        random.uniform(size=(len(chosen) - 1) * candidates)
    ledger.hold(lambda: ({"near": torch.from_numpy(near)}, {"chosen": chosen, "potential": potential}))
    while len(chosen) < count:
        reporter.progress(len(chosen), count, "centres", "choosing where k-means begins")
        ledger.offer()
        drawn = np.searchsorted(np.cumsum(near), random.uniform(size=candidates) * potential).clip(max=len(points) - 1)
        nearer = np.minimum(near, _squared_distances(points[drawn], points, norms))
        potentials = (nearer @ ones[:, None])[:, 0]
        best = int(potentials.argmin())
        near, potential = nearer[best].copy(), float(potentials[best])
        chosen.append(int(drawn[best]))
    return torch.tensor(chosen)


def _squared_distances(some: Matrix, points: Matrix, norms: Matrix) -> Matrix:
    """From some [k, d] to points [n, d], whose squared lengths are `norms` [n]: [k, n]."""
    found: Matrix = -2 * (some @ points.T)
    found += np.einsum("ij,ij->i", some, some)[:, None]
    found += norms
    return np.maximum(found, 0, out=found)


def _lloyd(points: Tensor, centres: Tensor, tolerance: float, ledger: Ledger, reporter: Reporter) -> Tensor:
    """Centres [k, d], each moved to the mean of the points nearest to it until hardly any moves."""
    iteration, at, parts = 0, 0, max(LEAST_BLOCKS, AT_ONCE // (centres.numel() * BLOCK)) * BLOCK
    assign = KMeans(1).fit(points[:1].numpy())  # only to be told the centres, time and again, and asked which is nearest
    labels = torch.full((len(points),), -1)  # the centre nearest to each point, by number, in the last iteration
    new, sums = labels.clone(), torch.zeros_like(centres)  # in this one, as far as it is, and the sum of each centre's points
    if found := ledger.resume():
        centres, labels, new, sums = (found[0][name] for name in ("centres", "labels", "new", "sums"))
        iteration, at = found[1]["iteration"], found[1]["at"]
    ledger.hold(lambda: ({"centres": centres, "labels": labels, "new": new, "sums": sums}, {"iteration": iteration, "at": at}))
    while iteration < ITERATIONS:
        reporter.progress(iteration, ITERATIONS, "iterations", "k-means")
        assign.cluster_centers_ = centres.numpy()
        while at < len(points):
            ledger.offer()
            reporter.pulse()
            part = points[at : at + parts]
            nearest = torch.from_numpy(assign.predict(part.numpy())).long()
            sums.index_add_(0, nearest, part)
            new[at : at + parts] = nearest
            at += parts
        moved = _means(points, centres, new, sums)
        still = torch.equal(new, labels) or float((moved - centres).square().sum()) <= tolerance
        centres, labels, new, sums, iteration, at = moved, new, labels, torch.zeros_like(sums), iteration + 1, 0
        if still:
            break
    return centres


def _means(points: Tensor, centres: Tensor, labels: Tensor, sums: Tensor) -> Tensor:
    """From the sums of their points [k, d] to the new centres; one that has no point takes the point farthest from its own centre."""
    count = torch.bincount(labels, minlength=len(centres)).double()
    if len(empty := (count == 0).nonzero().flatten()):
        distance = ((points - centres[labels]).numpy() ** 2).sum(axis=1)
        far = torch.from_numpy(np.argpartition(distance, -len(empty))[: -len(empty) - 1 : -1].copy())
        if distance.max() > 0:  # else there are more centres than different points
            for own, point in zip(empty, far, strict=True):
                sums[labels[point]] -= points[point]
                sums[own] = points[point]
                count[own], count[labels[point]] = 1, count[labels[point]] - 1
    moved, most = sums * (1 / count.clamp_min(1))[:, None], int(count.argmax())
    # One that is still without a point is put where most points are; the first ones, as there, where their sum is.
    left = count == 0
    moved[most + 1 :][left[most + 1 :]] = moved[most]
    moved[:most][left[:most]] = sums[most]
    return moved
