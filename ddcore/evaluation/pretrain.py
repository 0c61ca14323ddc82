"""Pre-training of an encoder on a set: plain SGD on the squared error to the targets, the same stream of batches for every arm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddcore.errors import DdcoreError
from ddcore.ledger import Ledger
from ddcore.matching.adjoint import batches_of
from ddcore.matching.explicit import core_of
from ddcore.networks.flat import FlatNetwork
from ddcore.synthetic import SyntheticSet
from ddcore.task import generator
from ddcore.threads import threads_for

CHECK_EVERY = 25  # steps between two looks at the loss: each look waits for the device


@dataclass(frozen=True)
class Pretrained:
    """Parameters theta [P] after pre-training; the loss of the first and of the last batch (None of an untrained network)."""

    theta: Tensor
    first_loss: float | None = None
    last_loss: float | None = None


def initial(network: FlatNetwork, seed: int, device: torch.device) -> Tensor:
    """The initialisation that every arm of a seed starts from: theta [P] on `device`."""
    return network.init(generator(seed, "initialisation")).to(device)


def pretrain(
    network: FlatNetwork,
    data: SyntheticSet,
    rate: float,
    settings: dict[str, Any],
    seed: int,
    arm: str,
    tick: Callable[[str], None],
    device: torch.device,
    by_layer: Tensor | None = None,
    ledger: Ledger | None = None,
) -> Pretrained:
    """Train `network` from the seed's initialisation on `data` by SGD; mean squared error over batch and target dimensions.

    settings: `steps`, `batch_size`, `momentum`, `weight_decay` of `specs.PretrainSpec`. tick: called before every step with words
    for people. by_layer: rates [num_layers] in place of `rate`, which is then their mean. Arms of one seed share the initialisation
    and, if their sets have equal sizes, the order of the batches. ledger: of which this is the part in hand, if of any: another attempt
    goes on from there. Raises `DdcoreError` diverged, naming arm and rate.
    """
    theta, images, targets = initial(network, seed, device), data.normalised().to(device), data.targets.to(device)
    batches = batches_of(len(images), settings["batch_size"], settings["steps"], generator(seed, "batches"))
    rates = rate if by_layer is None else network.spread(by_layer.to(device))
    velocity, first, last, done = torch.zeros_like(theta), None, float("nan"), 0
    if ledger is not None:
        if found := ledger.resume():
            (theta, velocity), said = (found[0][name].to(device) for name in ("theta", "velocity")), found[1]
            first, last, done = said["first"], said["last"], said["done"]
        ledger.hold(lambda: ({"theta": theta, "velocity": velocity}, {"first": first, "last": last, "done": done}))
    core = core_of(network, device)
    with threads_for(network, len(batches[0])):
        for step, batch in enumerate(batches, start=1):
            if step <= done:
                tick(f"pre-training on {arm}")
                continue
            if ledger is not None:
                ledger.offer()
            tick(f"pre-training on {arm}")
            rows = batch.to(device)
            found_here = core.gradient(theta, images[rows], targets[rows])
            velocity = settings["momentum"] * velocity + found_here.gradient + settings["weight_decay"] * theta
            theta = theta - rates * velocity
            if step == 1 or step == len(batches) or step % CHECK_EVERY == 0:
                last = float(found_here.loss)
                first = last if first is None else first
                if not torch.isfinite(theta).all():
                    raise DdcoreError(
                        "diverged",
                        f"pre-training on arm {arm!r} gave numbers that are not finite by step {step} at rate {rate:.4g} (seed {seed})",
                        "give a smaller pretrain.lr, or smaller multiples in pretrain.lr_grid",
                    )
            done = step
    return Pretrained(theta, first, last)
