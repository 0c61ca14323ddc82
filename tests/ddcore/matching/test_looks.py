"""Looks at a set while it is matched: what they measure, which set they keep, and that they change nothing else."""

import math

import pytest
import torch
from safetensors.torch import save_file

from ddcore.errors import Stopped
from ddcore.events import Reporter
from ddcore.experts.store import Trajectories
from ddcore.matching import looks as looks_module
from ddcore.matching.adjoint import batches_of
from ddcore.matching.cores import Core, inner_loss
from ddcore.matching.looks import Looks
from ddcore.matching.loop import State, look_iterations, match
from ddcore.matching.outer import OuterLoss
from ddcore.matching.windows import Windows
from ddcore.specs import MKDTPlusSpec, MKDTSpec
from ddcore.task import generator
from tests.ddcore.matching.outer_world import SHAPE, network_of, real_of, walks

SPEC = MKDTPlusSpec(
    iterations=12, inner_steps=3, expert_epochs=1, max_start_epoch=2, batch_size=4, lr_images=0.3, lr_targets=0.3, lr_rate=1e-4, looks=4
)


def looks_of(network, starts=2, steps=5):
    first = [network.init(generator(number, "look start")).double() for number in range(starts)]
    return Looks(Core(network), real_of(), first, torch.tensor([1, 2, 7]), steps, 4, 0.8)


def some_set(seed=1):
    make = generator(seed, "set")
    return [torch.randn(6, *rest, generator=make, dtype=torch.float64) for rest in (SHAPE, (3,))]


@pytest.fixture
def go(tmp_path):
    network = network_of()
    save_file({"trajectories": walks(network)}, tmp_path / "experts.safetensors")

    def run(looks, spec=SPEC, work="work", reporter=None):
        (tmp_path / work).mkdir(exist_ok=True)
        state = State.begin(spec, *some_set(), torch.tensor(0.1, dtype=torch.float64), generator(3, "matching"))
        windows = Windows(Trajectories([tmp_path]), spec)
        try:
            return state, match(OuterLoss(Core(network), spec), windows, spec, state, tmp_path / work, reporter or Reporter(), looks)
        except Stopped:
            return state, None

    run.network = network
    return run


@pytest.mark.parametrize("at_once", [3, 2], ids=["all images", "two and one"])
@pytest.mark.parametrize("layered", [False, True], ids=["one rate", "layers' rates"])
def test_a_look_is_the_error_on_real_images_after_training_from_each_start(layered, at_once, monkeypatch):
    network, (images, targets) = network_of(), some_set()
    monkeypatch.setattr(looks_module, "LARGEST", at_once * network.largest_map)
    looks, rate = looks_of(network), torch.tensor(0.1, dtype=torch.float64)
    if layered:
        rate = rate * torch.linspace(0.5, 2.0, len(network.layer_sizes), dtype=torch.float64)
    errors = []
    for number, start in enumerate(looks.starts):
        theta, velocity = start.clone().requires_grad_(True), torch.zeros_like(start)
        for batch in batches_of(6, 4, 5, generator(number, "look", "batches")):
            (gradient,) = torch.autograd.grad(inner_loss(network, theta, images[batch], targets[batch]), theta)
            velocity = 0.8 * velocity + gradient
            theta = (theta - (network.spread(rate) if layered else rate) * velocity).detach().requires_grad_(True)
        out = network(theta, looks.real.images.images[looks.rows]) - looks.real.targets[looks.rows]
        errors.append(float(out.square().mean().detach()))
    assert looks.error(images, targets, rate) == pytest.approx(sum(errors) / 2, rel=1e-10)
    assert max(map(len, looks.real.images.read)) == at_once


def test_a_set_that_diverges_is_infinitely_bad():
    images, targets = some_set()
    assert looks_of(network_of()).error(images, targets, torch.tensor(1e200, dtype=torch.float64)) == math.inf


def test_a_run_is_looked_at_evenly_and_at_its_end():
    assert look_iterations(SPEC) == {3, 6, 9, 12}
    assert look_iterations(SPEC.model_copy(update={"looks": 0})) == look_iterations(MKDTSpec()) == set()
    assert max(look_iterations(SPEC.model_copy(update={"looks": 50}))) == 12


def test_looks_change_nothing_but_which_set_is_kept(go):
    without, _ = go(None, work="without")
    state, history = go(looks_of(go.network))
    assert all(torch.equal(getattr(state, name), getattr(without, name)) for name in ("images", "targets", "rate"))
    assert without.best is None
    assert [at for at, _ in history["real_error"]] == [0, 3, 6, 9, 12]


class Scripted:
    """Looks whose errors are written down beforehand; it keeps the sets that it was shown."""

    def __init__(self, *errors):
        self.errors, self.shown = list(errors), []

    def error(self, *parts, pulse):
        self.shown.append([part.clone() for part in parts])
        return self.errors[len(self.shown) - 1]


@pytest.mark.parametrize(
    ("errors", "best"),
    [((5, 4, 2, 3, 3), 2), ((1, 4, 2, 3, 3), 0), ((5, 4, 3, 2, 1), 4), ((math.inf, 9, 9, 9, 9), 1)],
)
def test_the_set_that_taught_best_is_kept_the_one_it_began_from_too(go, errors, best):
    looks = Scripted(*errors)
    state, history = go(looks)
    assert all(torch.equal(kept, shown) for kept, shown in zip(state.best, looks.shown[best], strict=True))
    assert state.least == errors[best]
    assert [value for _, value in history["real_error"]] == [error for error in errors if error < math.inf]


@pytest.mark.parametrize("calls", [(0,), (4, 3), (0, 0, 7)])
def test_a_run_with_looks_that_is_stopped_and_resumed_is_the_same_bit_for_bit(go, calls):
    straight, curves = go(looks_of(go.network), work="straight")
    for count in calls:
        left = iter(range(count))
        stopped, nothing = go(looks_of(go.network), reporter=Reporter(should_stop=lambda left=left: next(left, None) is None))
        assert nothing is None
        assert stopped.iteration < 12
    resumed, again = go(looks_of(go.network))
    assert again == curves
    assert resumed.least == straight.least
    assert all(torch.equal(one, other) for one, other in zip(resumed.best, straight.best, strict=True))
