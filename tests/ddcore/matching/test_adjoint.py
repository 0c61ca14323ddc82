"""The adjoint against plain back-propagation through the whole unroll, in float64."""

import pytest
import torch

from ddcore.matching.adjoint import Inner, pull_back, run_inner
from ddcore.matching.blocks.compiled import CompiledBlocks
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.blocks.native import native_blocks
from ddcore.matching.cores import Core
from ddcore.matching.explicit import ExplicitConvNet
from ddcore.matching.losses import normalised_distance
from ddcore.networks.flat import build_student
from ddcore.specs import StudentSpec
from ddcore.task import generator
from tests.ddcore.matching.unrolled import adjoint_errors

CORES = {
    "generic": Core,
    "eager": lambda network: ExplicitConvNet(network, EagerBlocks()),
    "native": lambda network: ExplicitConvNet(network, native_blocks()),
}


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("size", [(8, 8), (9, 10)])  # pooling drops the last row of an odd size
@pytest.mark.parametrize("layered", [False, True], ids=["one rate", "layers' rates"])
def test_equals_the_full_unroll_to_1e_12(core, momentum, steps, size, layered):
    errors = adjoint_errors(CORES[core], steps, size, momentum, layered)
    assert max(errors) < 1e-12, errors


def test_on_compiled_blocks_it_equals_the_full_unroll_to_1e_12():
    """Few cases, all of one shape: each shape is compiled for seconds."""
    blocks = CompiledBlocks()
    for momentum, layered in ((0.9, False), (0.9, True), (0.0, False)):
        errors = adjoint_errors(lambda network: ExplicitConvNet(network, blocks), 4, (9, 10), momentum, layered)
        assert max(errors) < 1e-12, errors


def test_an_image_drawn_twice_counts_twice():
    make = generator(0, "twice")
    network = build_student(StudentSpec(depth=1, width=4), (1, 4, 4), 2)
    start, goal = network.init(make), network.init(make)
    images, targets = torch.randn(2, 1, 4, 4, generator=make), torch.randn(2, 2, generator=make)
    rate = torch.tensor(0.1)
    both = [torch.tensor([0]), torch.tensor([0])]
    run = run_inner(Inner(Core(network), images, targets, rate, both), start)
    _, end = normalised_distance(run.end, start, goal)
    found = pull_back(run, end)
    assert found.images[0].norm() > 0
    assert torch.equal(found.images[1], torch.zeros_like(images[1]))
