"""The outer loss: its terms, their derivatives, and the gradient of all of them at once through a whole inner run."""

from types import SimpleNamespace

import pytest
import torch

from ddcore.matching.adjoint import Inner, Memory, pull_back, run_inner
from ddcore.matching.cores import Core, inner_loss
from ddcore.matching.outer import OuterLoss
from ddcore.specs import MKDTPlusSpec, MKDTSpec
from ddcore.task import generator
from tests.ddcore.matching.outer_world import ALL_TERMS, CORES, SHAPE, network_of, real_of, terms_by_hand, total_by_hand, walks
from tests.ddcore.matching.unrolled import view

ROWS = torch.tensor([2, 7, 7, 0])


@pytest.fixture
def points():
    """end, average, start, goal, heading of a run and a window, all in float64."""
    network, make = network_of(), generator(1, "points")
    start, goal = walks(network)[0, :2]
    end, average, heading = (goal + 0.1 * torch.randn(goal.shape, generator=make, dtype=torch.float64) for _ in range(3))
    return network, end, average, start, goal, heading - start


TERMS = [
    {},
    {"normalise": "layers"},
    {"displacement": 0.7},
    {"gap": 0.4},
    {"functional": 0.9},
    {"functional": 0.9, "functional_goal": "expert"},
    ALL_TERMS,
]


@pytest.mark.parametrize("fields", TERMS, ids=lambda fields: "-".join(map(str, fields)) or "distance")
def test_terms_and_their_derivatives_are_those_of_their_equations(points, fields):
    network, end, average, start, goal, heading = points
    spec, real = MKDTPlusSpec(**fields), real_of()
    loss = OuterLoss(Core(network), spec, real)
    if loss.layers:
        assert len(loss.layers) == len(network.layer_sizes)  # none is small enough here to be joined
    found = loss(SimpleNamespace(end=end, average=average), start, goal, heading, ROWS)
    end, average = (tensor.clone().requires_grad_(True) for tensor in (end, average))
    terms = terms_by_hand(network, spec, end, average, start, goal, heading, real, ROWS)
    total = total_by_hand(spec, terms)
    assert loss.names == list(terms)
    assert torch.allclose(found.terms, torch.stack([*terms.values()]), rtol=1e-11)
    assert torch.allclose(found.total, total, rtol=1e-11)
    d_end, d_average = torch.autograd.grad(total, (end, average), allow_unused=True)
    assert torch.allclose(found.end, d_end, rtol=1e-9, atol=1e-12)
    assert (found.average is None) == (d_average is None) == (not spec.gap)
    assert d_average is None or torch.allclose(found.average, d_average, rtol=1e-9, atol=1e-12)


def test_at_the_goal_the_distance_is_zero_at_the_start_one_and_its_terms_with_it(points):
    network, _, _, start, goal, heading = points
    loss = OuterLoss(Core(network), MKDTPlusSpec(displacement=1.0, gap=1.0, functional=1.0, functional_goal="expert"), real_of())

    def at(end, average):
        return loss(SimpleNamespace(end=end, average=average), start, goal, heading, ROWS).terms.tolist()

    assert at(goal, goal - heading) == pytest.approx([0.0, 0.0, 0.0, 0.0], abs=1e-9)
    assert at(start, start + heading) == pytest.approx([1.0, 1.0, 2.0, 1.0])  # it went nowhere, and its gap points back
    assert at(2 * start - goal, start)[:2] == pytest.approx([4.0, 2.0])


def test_mkdt_has_its_own_loss_and_nothing_else(points):
    network, end, average, start, goal, _ = points
    loss = OuterLoss(Core(network), MKDTSpec())
    found = loss(SimpleNamespace(end=end, average=average), start, goal)
    assert (loss.names, loss.weights, loss.layers) == (["distance"], {}, [])
    assert torch.equal(found.total, found.terms[0])
    assert found.average is None


def test_a_term_of_no_weight_is_absent_and_reads_nothing(points):
    network, end, average, start, goal, heading = points
    real, run = real_of(), SimpleNamespace(end=end, average=average)
    without = OuterLoss(Core(network), MKDTPlusSpec(displacement=0.5, gap=0.5))(run, start, goal, heading)
    loss = OuterLoss(Core(network), MKDTPlusSpec(displacement=0.5, gap=0.5, functional=0.0), real)
    found = loss(run, start, goal, heading, ROWS)
    assert loss.names == ["distance", "displacement", "gap"]
    assert real.images.read == []
    assert all(torch.equal(getattr(found, name), getattr(without, name)) for name in ("total", "terms", "end", "average"))


def test_the_functional_term_without_real_images_is_refused(points):
    with pytest.raises(ValueError, match="reads real images, and none were given"):
        OuterLoss(Core(points[0]), MKDTPlusSpec(functional=0.1))


@pytest.mark.parametrize("goal", ["teacher", "expert"])
@pytest.mark.parametrize("layered", [False, True], ids=["one rate", "layers' rates"])
@pytest.mark.parametrize("augment", [None, view], ids=["plain", "augmented"])
@pytest.mark.parametrize("core", CORES)
def test_the_gradient_of_all_terms_at_once_is_that_of_the_whole_unroll(core, augment, layered, goal):
    network, real, make, decay, momentum = network_of(), real_of(), generator(2, "set"), 0.6, 0.8
    spec = MKDTPlusSpec(**ALL_TERMS, functional_goal=goal)
    start, phi, later = walks(network)[1, :3]
    given = [torch.randn(6, *rest, generator=make, dtype=torch.float64) for rest in (SHAPE, (3,))]
    rate = torch.tensor(0.1, dtype=torch.float64)
    given.append(rate * torch.linspace(0.5, 2.0, len(network.layer_sizes), dtype=torch.float64) if layered else rate)
    batches = [torch.randperm(6, generator=make)[:4] for _ in range(4)]

    images, targets, rate = leaves = [tensor.clone().requires_grad_(True) for tensor in given]
    theta, average, velocity = start.clone().requires_grad_(True), start, torch.zeros_like(start)
    for step, batch in enumerate(batches):
        x = images[batch] if augment is None else augment(images[batch], step)
        (gradient,) = torch.autograd.grad(inner_loss(network, theta, x, targets[batch]), theta, create_graph=True)
        velocity = momentum * velocity + gradient
        theta = theta - (network.spread(rate) if layered else rate) * velocity
        average = decay * average + (1 - decay) * theta
    total = total_by_hand(spec, terms_by_hand(network, spec, theta, average, start, phi, later - phi, real, ROWS))
    expected = torch.autograd.grad(total, leaves)

    loss = OuterLoss(CORES[core](network), spec, real)
    run = run_inner(Inner(loss.core, *given, batches, momentum, augment, decay), start, Memory(1, "sparse"))
    outer = loss(run, start, phi, later - phi, ROWS)
    found = pull_back(run, outer.end, outer.average)
    assert torch.allclose(outer.total, total, rtol=1e-11)
    for ours, theirs in zip((found.images, found.targets, found.rate), expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-10
