"""How far an exact core is from the full unroll in float64: only rounding may be between them."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.full_unroll import Problem, full_unroll
from ddcore.matching.adjoint import Inner, Memory, batches_of, pull_back, run_inner
from ddcore.matching.cores import Core
from ddcore.matching.losses import normalised_distance
from ddcore.networks.convnet import ConvNet
from ddcore.networks.flat import FlatNetwork
from ddcore.task import generator

STEPS, COUNT, BATCH, DIMS = 5, 9, 6, 7
SIZES = ((3, 16, 16, 3, 16), (1, 13, 10, 2, 8))  # channels, height, width, depth, maps: even sides, and odd ones
MEMORIES = (Memory(), Memory(STEPS), Memory(2, "sparse"))


def max_relative_error(core_of: Callable[[FlatNetwork], Core], device: torch.device) -> float:
    """The largest error of any gradient (images, targets, rate, start) over the largest number in it, worst of all settings.

    Settings: two small networks; momentum 0 and 0.9; one rate and one for each layer; with and without a linear augmentation; nothing
    cached, all steps cached, and parameters kept only now and then.
    """
    worst = 0.0
    for sizes, momentum, by_layer, augmented in itertools.product(SIZES, (0.0, 0.9), (False, True), (False, True)):
        network, problem = small_problem(sizes, device, momentum, by_layer, augmented)
        answer = full_unroll(network.module, problem, with_start=True)
        assert answer.start is not None
        wanted = (answer.images, answer.targets, answer.rate, answer.start)
        core = core_of(network)
        for memory in MEMORIES:
            found = gradients(core, problem, memory)
            worst = max(worst, *(relative_error(one, other) for one, other in zip(found, wanted, strict=True)))
    return worst


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest number wanted."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def gradients(core: Core, problem: Problem, memory: Memory) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Our side of the comparison: gradients in images, targets, rate and start."""
    inner = Inner(core, problem.images, problem.targets, problem.rate, problem.batches, problem.momentum, problem.augment)
    run = run_inner(inner, problem.start, memory)
    _, end = normalised_distance(run.end, problem.start, problem.goal)
    found = pull_back(run, end)
    return found.images, found.targets, found.rate, found.start


def small_problem(
    sizes: tuple[int, int, int, int, int], device: torch.device, momentum: float, by_layer: bool, augmented: bool
) -> tuple[FlatNetwork, Problem]:
    """A network in float64, and something for it to learn."""
    channels, height, width, depth, maps = sizes
    network = FlatNetwork(ConvNet(channels, height, width, DIMS, depth, maps).double().to(device))
    random = generator(0, "exactness", *sizes)
    start, goal = (network.init(random).double().to(device) for _ in range(2))
    images = torch.randn(COUNT, channels, height, width, generator=random, dtype=torch.float64).to(device)
    targets = torch.randn(COUNT, DIMS, generator=random, dtype=torch.float64).to(device)
    rate = 0.05 * (1 + torch.rand(len(network.layer_sizes) if by_layer else (), generator=random, dtype=torch.float64)).to(device)
    batches = [rows.to(device) for rows in batches_of(COUNT, BATCH, STEPS, random)]
    return network, Problem(start, goal, images, targets, rate, batches, momentum, linear_views if augmented else None)


def linear_views(x: Tensor, step: int) -> Tensor:
    """Images mirrored, shifted and scaled, another way in each step: linear in them."""
    return torch.roll(x.flip(3) if step % 2 else x, step, 2) * (1.0 + 0.1 * step)
