"""Random walks to match, real images in float64, and a plain reading of the whole outer loss."""

from types import SimpleNamespace

import torch

from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.cores import Core, inner_loss
from ddcore.matching.explicit import ExplicitConvNet
from ddcore.networks.flat import build_student
from ddcore.specs import StudentSpec
from ddcore.task import generator

SHAPE, DIM, REAL = (1, 6, 8), 3, 11
CORES = {"generic": Core, "explicit": lambda network: ExplicitConvNet(network, EagerBlocks())}
ALL_TERMS = {"normalise": "layers", "displacement": 0.7, "gap": 0.4, "functional": 0.9}


class Rows:
    """Normalised images [n, c, h, w] in float64, read as `PixelRows` are."""

    def __init__(self, images):
        self.images, self.read = images, []

    def __len__(self):
        return len(self.images)

    def batch(self, rows):
        self.read.append(rows.tolist())
        return self.images[rows]


def network_of():
    network = build_student(StudentSpec(depth=1, width=4), SHAPE, DIM)
    network.module.double()
    return network


def real_of():
    make = generator(4, "real")
    images, targets = (torch.randn(REAL, *rest, generator=make, dtype=torch.float64) for rest in (SHAPE, (DIM,)))
    return SimpleNamespace(images=Rows(images), targets=targets)


def walks(network, count=3, snapshots=4):
    """Paths [count, snapshots, P]: random walks of no direction that any term likes."""
    paths = []
    for index in range(count):
        make = generator(index, "walk")
        path = [network.init(make).double()]
        for _ in range(snapshots - 1):
            path.append(path[-1] + 0.05 * torch.randn(path[0].shape, generator=make, dtype=torch.float64))
        paths.append(torch.stack(path))
    return torch.stack(paths)


def cosine(one, other):
    return (one * other).sum() / (one.square().sum().sqrt() * other.square().sum().sqrt())


def distance(end, start, goal, sizes):
    """Mean over the layers, or the plain quotient where there is but one."""
    parts = zip(end.split(sizes), start.split(sizes), goal.split(sizes), strict=True)
    return torch.stack([(e - g).square().sum() / (s - g).square().sum() for e, s, g in parts]).mean()


def terms_by_hand(network, spec, end, average, start, goal, heading, real, rows):
    """Name -> value of each term of the outer loss, from its equation, differentiable in `end` and `average`."""
    sizes = list(network.layer_sizes) if spec.normalise == "layers" else [network.num_parameters]
    found = {"distance": distance(end, start, goal, sizes)}
    if spec.displacement:
        found["displacement"] = 1 - cosine(end - start, goal - start)
    if spec.gap:
        found["gap"] = 1 - cosine(end - average, heading)
    if spec.functional:
        x, y = real.images.images[rows], real.targets[rows]
        if spec.functional_goal == "expert":
            y = network(goal, x).detach()
        found["functional"] = inner_loss(network, end, x, y) / inner_loss(network, start, x, y).detach()
    return found


def total_by_hand(spec, found):
    weights = {"distance": 1.0, "displacement": spec.displacement, "gap": spec.gap, "functional": spec.functional}
    return sum(weights[name] * term for name, term in found.items())
