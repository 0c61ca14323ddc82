"""The outer loop with a rate for each layer and with augmented inner steps."""

import pytest
import torch
from safetensors.torch import save_file

from ddcore.data.differentiable import Views
from ddcore.errors import DdcoreError, Stopped
from ddcore.events import Reporter
from ddcore.experts.store import Trajectories
from ddcore.matching.adjoint import batches_of
from ddcore.matching.cores import inner_loss
from ddcore.matching.explicit import core_of
from ddcore.matching.loop import State, match
from ddcore.matching.outer import OuterLoss
from ddcore.matching.windows import Windows
from ddcore.networks.flat import build_student
from ddcore.specs import MKDTSpec, StudentSpec
from ddcore.task import generator

STEPS, SET, SHAPE, RATE = 3, 6, (1, 6, 8), 0.1
VIEWS = ("shift", "scale", "brightness", "contrast", "cutout")


@pytest.fixture
def world(tmp_path):
    """Trajectories of three random walks, and a factory of specs, states and runs."""
    network = build_student(StudentSpec(depth=1, width=4), SHAPE, 3)
    network.module.double()
    make, paths = generator(0, "walks"), []
    for index in range(3):
        steps = [network.init(generator(index, "start")).double()]
        for _ in range(3):
            steps.append(steps[-1] + 0.05 * torch.randn(steps[0].shape, generator=make, dtype=torch.float64))
        paths.append(torch.stack(steps))
    save_file({"trajectories": torch.stack(paths)}, tmp_path / "experts.safetensors")
    experts = Trajectories([tmp_path])

    class World:
        def __init__(self):
            self.network, self.experts = network, experts

        def spec(self, **changed):
            fields = {
                "iterations": 12, "inner_steps": STEPS, "expert_epochs": 1, "max_start_epoch": 2, "batch_size": 4, "lr_images": 0.1,
                "lr_targets": 0.1, "lr_rate": 1e-4, "outer_momentum": 0.0, "inner_momentum": 0.8, "rates": "per_layer", "augment": VIEWS,
            }  # fmt: skip
            return MKDTSpec(**(fields | changed))

        def begin(self, spec, rate=RATE):
            make = generator(1, "set")
            images, targets = (torch.randn(SET, *rest, generator=make, dtype=torch.float64) for rest in (SHAPE, (3,)))
            return State.begin(spec, images, targets, torch.full((3,), rate, dtype=torch.float64), generator(3, "matching"))

        def go(self, spec, state, work="work", reporter=None):
            (tmp_path / work).mkdir(exist_ok=True)
            core = core_of(network, torch.device("cpu"))
            return match(OuterLoss(core, spec), Windows(experts, spec), spec, state, tmp_path / work, reporter or Reporter())

    return World()


def test_an_iteration_with_layers_rates_and_views_is_the_papers_algorithm(world):
    """Against a plain reading of it: draw, unroll with every graph kept, differentiate once, step."""
    spec = world.spec(iterations=3)
    state, random = world.begin(spec), generator(3, "matching")
    images, targets, rate = (t.clone().requires_grad_(True) for t in (state.images, state.targets, state.rate))
    views = Views(VIEWS, STEPS, state.images)
    for _ in range(3):
        expert, epoch = (int(torch.randint(n, (), generator=random)) for n in (3, spec.max_start_epoch + 1))
        start, goal = world.experts.row(expert, epoch), world.experts.row(expert, epoch + 1)
        theta, velocity = start.clone().requires_grad_(True), torch.zeros_like(start)
        batches = batches_of(SET, 4, STEPS, random)
        views.draw(random)
        for step, batch in enumerate(batches):
            loss = inner_loss(world.network, theta, views(images[batch], step), targets[batch])
            velocity = 0.8 * velocity + torch.autograd.grad(loss, theta, create_graph=True)[0]
            theta = theta - world.network.spread(rate) * velocity
        outer = ((theta - goal) ** 2).sum() / ((start - goal) ** 2).sum()
        found = torch.autograd.grad(outer, (images, targets, rate))
        with torch.no_grad():
            for tensor, gradient, lr in zip((images, targets, rate), found, (0.1, 0.1, 1e-4), strict=True):
                tensor -= lr * gradient
    curves = world.go(spec, state)
    for ours, theirs in zip((state.images, state.targets, state.rate), (images, targets, rate), strict=True):
        assert torch.allclose(ours, theirs.detach(), rtol=1e-10, atol=1e-12)
    assert len(set(state.rate.tolist())) == 3
    assert curves["learned_lr"][-1][1] == pytest.approx(float(state.rate.prod()) ** (1 / 3))


def test_the_layer_whose_rate_runs_away_is_named_and_each_is_held_by_itself(world):
    spec = world.spec(lr_rate=1e3, iterations=25)
    state = world.begin(spec)
    with pytest.raises(DdcoreError, match=r"the learned rate of layer (blocks\.\d|linear) ran from 0\.1 to its bound"):
        world.go(spec, state)
    assert float(state.rate.min()) >= RATE / 30 * 0.999
    assert float(state.rate.max()) <= RATE * 30 * 1.001


def test_a_run_that_is_stopped_and_resumed_is_the_same_bit_for_bit(world):
    spec = world.spec(optimizer="adam", lr_images=0.02, lr_targets=0.02, lr_rate=1e-3)
    straight, heard = world.begin(spec), []
    curves = world.go(spec, straight, "straight")

    def due():
        heard.append(None)
        return len(heard) > 5

    with pytest.raises(Stopped):
        world.go(spec, world.begin(spec), reporter=Reporter(should_stop=due))
    resumed = world.begin(spec)
    assert world.go(spec, resumed) == curves
    for name in ("images", "targets", "rate"):
        assert torch.equal(getattr(resumed, name), getattr(straight, name)), name
