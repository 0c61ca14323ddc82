"""Looks at a set while it is matched: what networks learn from it, measured on real images without their labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddcore.experts.sgd import Regression
from ddcore.matching.adjoint import batches_of
from ddcore.matching.cores import Core, inner_loss
from ddcore.task import generator
from ddcore.transfer import send

NETWORKS = 4  # that a look trains
IMAGES = 2000  # real ones that it measures them on
LARGEST = 1 << 24  # numbers in the largest feature map of as many of them as are measured at once: what is free may be planned for
AT_ONCE = 256  # of them, where that map is not known


@dataclass(frozen=True)
class Looks:
    """starts: initialisations [P] that no expert had; steps: of SGD, the horizon of pre-training; rows: indices of real images."""

    core: Core
    real: Regression
    starts: Sequence[Tensor]
    rows: Tensor
    steps: int
    batch_size: int
    momentum: float

    @staticmethod
    def of(core: Core, real: Regression, seed: int, steps: int, batch_size: int, momentum: float) -> "Looks":
        device = real.targets.device
        starts = [core.network.init(generator(seed, "look", number)).to(device) for number in range(NETWORKS)]
        rows = torch.randperm(len(real.targets), generator=generator(seed, "look", "images"))[:IMAGES]
        return Looks(core, real, starts, send(rows, device), steps, batch_size, momentum)

    @torch.no_grad()
    def error(self, images: Tensor, targets: Tensor, rate: Tensor, pulse: Callable[[], None] = lambda: None) -> float:
        """Mean squared error from the targets of real images after pre-training on the set from each start; waits for the device.

        images: [m, c, h, w], normalised; targets: [m, d]; rate: [] or [num_layers]. pulse: called before each step; it may raise.
        Infinite where any run diverged.
        """
        rates = rate if rate.ndim == 0 else self.core.network.spread(rate)
        largest = self.core.network.largest_map
        parts = self.rows.split(AT_ONCE if largest is None else max(1, LARGEST // largest))
        total = images.new_zeros(())
        for number, start in enumerate(self.starts):
            theta, velocity = start, torch.zeros_like(start)
            for batch in batches_of(len(images), self.batch_size, self.steps, generator(number, "look", "batches")):
                pulse()
                rows = send(batch, images.device)
                velocity = torch.add(self.core.gradient(theta, images[rows], targets[rows]).gradient, velocity, alpha=self.momentum)
                theta = torch.addcmul(theta, velocity, rates, value=-1)
            for part in parts:
                pulse()
                x, y = self.real.images.batch(part), self.real.targets.index_select(0, part)
                total += inner_loss(self.core.network, theta, x, y) * (len(part) / len(self.rows) / len(self.starts))
        found = float(total)
        return found if found == found else float("inf")
