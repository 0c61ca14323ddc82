"""The adjoint against plain back-propagation through the whole unroll, in float64."""

import pytest
import torch

from ddcore.matching.adjoint import Inner, Memory, pull_back, run_inner
from ddcore.matching.blocks.compiled import CompiledBlocks
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.blocks.native import native_blocks
from ddcore.matching.cores import Core, inner_loss
from ddcore.matching.explicit import ExplicitConvNet
from ddcore.matching.losses import normalised_distance
from ddcore.networks.flat import build_student
from ddcore.specs import StudentSpec
from ddcore.task import generator
from tests.ddcore.matching.unrolled import adjoint_errors, view

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


def averaging_world(layered):
    make = generator(5, "averaging")
    network = build_student(StudentSpec(depth=1, width=5), (3, 6, 6), 4)
    network.module.double()
    start, goal, heading = (network.init(make).double() for _ in range(3))
    images, targets = (torch.randn(7, *rest, generator=make, dtype=torch.float64) for rest in ((3, 6, 6), (4,)))
    rate = torch.tensor(0.3, dtype=torch.float64)
    if layered:
        rate = rate + 0.2 * torch.rand(len(network.layer_sizes), generator=make, dtype=torch.float64)
    batches = [torch.randperm(7, generator=make)[:4] for _ in range(5)]
    return network, (start, images, targets, rate), batches, goal, heading


def loss_of(end, average, goal, heading):
    """Any smooth function of where a run ended and of its average, whose derivatives in the two are not alike."""
    return (end - goal).square().sum() + torch.sin(average - heading).sum() + (end * average).sum()


@pytest.mark.parametrize("augment", [None, view], ids=["plain", "augmented"])
@pytest.mark.parametrize("layered", [False, True], ids=["one rate", "layers' rates"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("core", ["generic", "eager"])
def test_the_gradient_through_the_moving_average_equals_the_full_unroll(core, momentum, layered, augment):
    decay = 0.7
    network, given, batches, goal, heading = averaging_world(layered)
    start, images, targets, rate = leaves = [tensor.clone().requires_grad_(True) for tensor in given]
    rates = network.spread(rate) if layered else rate
    theta, average, velocity = start, start, torch.zeros_like(start)
    for step, batch in enumerate(batches):
        x = images[batch] if augment is None else augment(images[batch], step)
        (gradient,) = torch.autograd.grad(inner_loss(network, theta, x, targets[batch]), theta, create_graph=True)
        velocity = momentum * velocity + gradient
        theta = theta - rates * velocity
        average = decay * average + (1 - decay) * theta
    expected = torch.autograd.grad(loss_of(theta, average, goal, heading), leaves)

    for memory in (Memory(), Memory(2, "host"), Memory(1, "sparse"), Memory(5, "device")):
        inner = Inner(CORES[core](network), *given[1:], batches, momentum, augment, decay)
        run = run_inner(inner, given[0], memory)
        assert torch.allclose(run.average, average, rtol=1e-12)
        ends = [tensor.detach().clone().requires_grad_(True) for tensor in (run.end, run.average)]
        found = pull_back(run, *torch.autograd.grad(loss_of(*ends, goal, heading), ends))
        for ours, theirs in zip((found.start, found.images, found.targets, found.rate), expected, strict=True):
            assert float((ours - theirs).norm() / theirs.norm()) < 1e-10, memory


def test_what_is_kept_changes_no_bit_of_a_gradient_through_the_average():
    network, given, batches, goal, heading = averaging_world(layered=False)
    found = []
    for memory in (Memory(), Memory(5, "device"), Memory(2, "host"), Memory(0, "sparse"), Memory(3, "sparse")):
        run = run_inner(Inner(CORES["eager"](network), *given[1:], batches, 0.9, view, 0.7), given[0], memory)
        found.append((run.average.clone(), pull_back(run, run.end - goal, run.average - heading)))
    for average, gradients in found[1:]:
        assert torch.equal(average, found[0][0])
        for name in ("images", "targets", "rate", "start"):
            assert torch.equal(getattr(gradients, name), getattr(found[0][1], name)), name


def test_an_average_that_the_loss_does_not_read_changes_nothing():
    network, given, batches, goal, _ = averaging_world(layered=False)
    runs = [run_inner(Inner(Core(network), *given[1:], batches, 0.9, None, decay), given[0]) for decay in (None, 0.7)]
    assert torch.equal(runs[0].end, runs[1].end)
    plain, averaged = (pull_back(run, run.end - goal) for run in runs)
    assert all(torch.equal(getattr(plain, name), getattr(averaged, name)) for name in ("images", "targets", "rate", "start"))
