"""The outer loop with all terms of the loss, windows of every kind, and a threshold."""

import itertools

import pytest
import torch
from safetensors.torch import save_file

from ddcore.data.differentiable import Views
from ddcore.errors import DdcoreError, Stopped
from ddcore.events import Reporter
from ddcore.experts.store import Trajectories
from ddcore.matching import loop
from ddcore.matching.adjoint import batches_of
from ddcore.matching.cores import inner_loss
from ddcore.matching.loop import State, match
from ddcore.matching.outer import OuterLoss
from ddcore.matching.windows import Pace, Windows, inner_decay
from ddcore.specs import MKDTPlusSpec
from ddcore.task import generator
from tests.ddcore.matching.outer_world import ALL_TERMS, CORES, SHAPE, network_of, real_of, terms_by_hand, total_by_hand, walks

SET, STEPS, RATE = 6, 3, 0.1
VIEWS = ("shift", "cutout")


def spec_of(**changes):
    fields = {
        "iterations": 12, "inner_steps": STEPS, "expert_epochs": 1, "max_start_epoch": 2, "batch_size": 4, "lr_images": 0.1,
        "lr_targets": 0.1, "lr_rate": 1e-4, "outer_momentum": 0.0, "inner_momentum": 0.8, "functional_images": 5,
    }  # fmt: skip
    return MKDTPlusSpec(**(fields | ALL_TERMS | changes))


@pytest.fixture
def go(tmp_path):
    network = network_of()
    save_file({"trajectories": walks(network, snapshots=5)}, tmp_path / "experts.safetensors")

    class World:
        def __init__(self):
            self.network, self.experts, self.real = network, Trajectories([tmp_path]), real_of()

        def begin(self, spec):
            make = generator(1, "set")
            images, targets = (torch.randn(SET, *rest, generator=make, dtype=torch.float64) for rest in (SHAPE, (3,)))
            rate = torch.tensor(RATE, dtype=torch.float64)
            rate = rate.repeat(len(network.layer_sizes)) if spec.rates == "per_layer" else rate
            return State.begin(spec, images, targets, rate, generator(3, "matching"))

        def __call__(self, spec, state, work="work", reporter=None, core="explicit", pace=None):
            (tmp_path / work).mkdir(exist_ok=True)
            loss = OuterLoss(CORES[core](network), spec, self.real)
            return match(loss, Windows(self.experts, spec, pace), spec, state, tmp_path / work, reporter or Reporter())

    return World()


def run_up(go, images, targets, rate, window, random):
    """Plain steps with momentum on the set as it is, without views and without a graph."""
    theta, velocity = window.start, torch.zeros_like(window.start)
    for batch in batches_of(SET, 4, window.run_up, random):
        theta = theta.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(inner_loss(go.network, theta, images[batch].detach(), targets[batch].detach()), theta)
        velocity = 0.8 * velocity + gradient
        theta = theta - go.network.spread(rate.detach()) * velocity
    return theta.detach()


@pytest.mark.parametrize(("core", "own_starts"), [("generic", 0.0), ("explicit", 0.0), ("explicit", 1.0)])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_iterations_with_all_terms_are_what_their_equations_say(go, core, own_starts, schedule):
    """Three of them by hand: draw a window, batches, views and real images; unroll with every graph kept; differentiate once; step."""
    spec = spec_of(iterations=3, rates="per_layer", augment=VIEWS, growing=0.5, own_starts=own_starts, schedule=schedule)
    state, random = go.begin(spec), generator(3, "matching")
    images, targets, rate = (tensor.clone().requires_grad_(True) for tensor in (state.images, state.targets, state.rate))
    views, windows, decay, curves = Views(VIEWS, STEPS, state.images), Windows(go.experts, spec), inner_decay(spec), []
    for iteration in range(3):
        window = windows.draw(iteration, random)
        batches = batches_of(SET, 4, STEPS, random)
        views.draw(random)
        start = run_up(go, images, targets, rate, window, random)
        average, velocity, theta = start, torch.zeros_like(start), start.clone().requires_grad_(True)
        rows = torch.randint(11, (5,), generator=random)
        for step, batch in enumerate(batches):
            loss = inner_loss(go.network, theta, views(images[batch], step), targets[batch])
            velocity = 0.8 * velocity + torch.autograd.grad(loss, theta, create_graph=True)[0]
            theta = theta - go.network.spread(rate) * velocity
            average = decay * average + (1 - decay) * theta
        terms = terms_by_hand(go.network, spec, theta, average, start, window.goal, window.heading, go.real, rows)
        total = total_by_hand(spec, terms)
        found = torch.autograd.grad(total, (images, targets, rate))
        part = (1.0, 0.75, 0.25)[iteration] if schedule == "cosine" else 1.0  # (1 + cos(pi i / 3)) / 2
        with torch.no_grad():
            for tensor, gradient, lr in zip((images, targets, rate), found, (0.1, 0.1, 1e-4), strict=True):
                tensor -= part * lr * gradient
        curves.append({"matching_loss": total, **terms})
    history = go(spec, state, core=core)
    for ours, theirs in zip((state.images, state.targets, state.rate), (images, targets, rate), strict=True):
        assert torch.allclose(ours, theirs.detach(), rtol=1e-10, atol=1e-12)
    assert set(history) == {"matching_loss", "learned_lr", "distance", "displacement", "gap", "functional"}
    for name in curves[0]:
        assert [value for _, value in history[name]] == pytest.approx([float(one[name].detach()) for one in curves], rel=1e-9)


def stop_after(calls):
    left = iter(range(calls))
    return Reporter(should_stop=lambda: next(left, None) is None)


def usual_distance(go, spec, **options):
    """The median of what a run sees that moves nothing: about half of its windows end beyond it."""
    still = spec.model_copy(update={"lr_images": 0.0, "lr_targets": 0.0, "lr_rate": 0.0})
    distances = [value for _, value in go(still, go.begin(still), "still", **options)["distance"]]
    return sorted(distances)[len(distances) // 2]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_with_all_its_parts_that_is_stopped_and_resumed_is_the_same_bit_for_bit(go, monkeypatch, optimizer):
    pace, sizes = Pace(0.5, 2), {"lr_images": 0.002, "lr_targets": 0.002}
    spec = spec_of(optimizer=optimizer, rates="per_layer", augment=VIEWS, growing=0.5, own_starts=0.5, **sizes)
    spec = spec.model_copy(update={"threshold": usual_distance(go, spec, pace=pace)})
    monkeypatch.setattr(loop, "CURVE_POINTS", 4)  # so that points of the curve average over a stop
    straight = go.begin(spec)
    curves = go(spec, straight, "straight", pace=pace)
    for calls in (0, 3, 4):
        with pytest.raises(Stopped):
            go(spec, go.begin(spec), reporter=stop_after(calls), pace=pace)
    resumed = go.begin(spec)
    assert go(spec, resumed, pace=pace) == curves
    assert 0 < int(straight.skipped[1]) < 12  # the threshold had a say
    for name in ("images", "targets", "rate", "skipped"):
        assert torch.equal(getattr(resumed, name), getattr(straight, name)), name


def test_windows_that_end_beyond_the_threshold_are_counted_and_teach_nothing(go):
    """A set moves in the iterations whose distance is within it, and in no others; the curves tell of all."""
    spec = spec_of(lr_images=0.002, lr_targets=0.002)
    spec = spec.model_copy(update={"threshold": usual_distance(go, spec)})
    state, kept = go.begin(spec), []

    def due():
        kept.append(torch.cat([part.flatten() for part in (state.images, state.targets, state.rate)]))
        return False

    history = go(spec, state, reporter=Reporter(should_stop=due))
    moved = [not torch.equal(one, other) for one, other in itertools.pairwise(kept)]
    assert moved == [value <= spec.threshold for _, value in history["distance"]]
    assert 0 < sum(moved) < 12
    assert state.skipped.tolist() == [0, 12 - sum(moved)]


@pytest.mark.parametrize("iterations", [30, 130])
def test_a_run_that_learns_from_hardly_any_window_is_a_divergence_at_any_length(go, iterations):
    spec = spec_of(iterations=iterations, threshold=1e-6, functional=0.0)
    with pytest.raises(DdcoreError, match=r"\d+ of \d+ windows ended beyond the threshold") as caught:
        go(spec, go.begin(spec))
    assert caught.value.code == "diverged"
    assert "leave out method.threshold" in caught.value.hint


def test_a_threshold_that_no_window_passes_over_changes_no_bit(go):
    plain, held = (go.begin(spec_of()) for _ in range(2))
    go(spec_of(), plain, "plain")
    go(spec_of(threshold=1e9), held, "held")
    assert torch.equal(plain.images, held.images)
    assert held.skipped.tolist() == [0, 0]
