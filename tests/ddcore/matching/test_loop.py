"""The outer loop: what an iteration computes, the guards, and a run that is stopped and resumed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.fx.experimental.proxy_tensor import make_fx

from ddcore import events
from ddcore.checkpoint import read_checkpoint
from ddcore.errors import DdcoreError, Stopped
from ddcore.events import Reporter
from ddcore.experts.store import Trajectories
from ddcore.matching import loop
from ddcore.matching.adjoint import Inner, batches_of, run_inner
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.cores import Core, inner_loss
from ddcore.matching.explicit import ExplicitConvNet, core_of
from ddcore.matching.graphs import Replayed
from ddcore.matching.loop import State, match
from ddcore.matching.outer import OuterLoss
from ddcore.matching.windows import Windows
from ddcore.networks.flat import build_student
from ddcore.specs import MKDTSpec, StudentSpec
from ddcore.task import generator

STEPS, RATE, SET = 3, 0.1, 6
SHAPE = (1, 4, 4)


def network_of(dtype=torch.float64):
    network = build_student(StudentSpec(depth=1, width=4), SHAPE, 3)
    network.module.to(dtype)
    return network


def true_set(dtype=torch.float64):
    make = generator(1, "true set")
    return torch.randn(SET, *SHAPE, generator=make, dtype=dtype), torch.randn(SET, 3, generator=make, dtype=dtype)


def experts_on(folder, count=3, epochs=3, dtype=torch.float64, spoil=()):
    """Experts trained on the true set itself, in whole batches: that set follows them exactly."""
    network, (images, targets) = network_of(dtype), true_set(dtype)
    paths = []
    for index in range(count):
        path = [network.init(generator(index, "start")).to(dtype)]
        for _ in range(epochs):
            whole = [torch.arange(SET)] * STEPS
            path.append(run_inner(Inner(Core(network), images, targets, torch.tensor(RATE, dtype=dtype), whole), path[-1]).end)
        paths.append(torch.stack(path) * (math.nan if index in spoil else 1.0))
    folder.mkdir(exist_ok=True, parents=True)
    save_file({"trajectories": torch.stack(paths)}, folder / "experts.safetensors")
    return Trajectories([folder])


def spec_of(**changes):
    fields = {
        "iterations": 30, "inner_steps": STEPS, "expert_epochs": 1, "max_start_epoch": 2, "batch_size": SET,
        "lr_images": 1.0, "lr_targets": 0.1, "lr_rate": 1e-4, "outer_momentum": 0.5,
    }  # fmt: skip
    return MKDTSpec(**(fields | changes))


def begin(spec, blur=0.0, dtype=torch.float64, rate=RATE):
    images, targets = true_set(dtype)
    make = generator(2, "blur")
    images += blur * torch.randn(images.shape, generator=make, dtype=dtype)
    targets += blur * torch.randn(targets.shape, generator=make, dtype=dtype)
    return State.begin(spec, images, targets, torch.tensor(rate, dtype=dtype), generator(3, "matching"))


def go(tmp_path, spec, state, experts=None, reporter=None, work="work", core=None):
    (tmp_path / work).mkdir(exist_ok=True)
    experts = experts or experts_on(tmp_path / "experts", dtype=state.images.dtype)
    core = core or core_of(network_of(state.images.dtype), torch.device("cpu"))
    return match(OuterLoss(core, spec), Windows(experts, spec), spec, state, tmp_path / work, reporter or Reporter())


def test_the_set_that_experts_were_trained_on_is_a_fixed_point(tmp_path):
    spec = spec_of()
    state, still = begin(spec), begin(spec)
    curves = go(tmp_path, spec, state)
    assert max(value for _, value in curves["matching_loss"]) < 1e-20
    assert torch.allclose(state.images, still.images, atol=1e-8)
    assert torch.allclose(state.targets, still.targets, atol=1e-8)
    assert abs(float(state.rate) - RATE) < 1e-8


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_from_elsewhere_the_matching_loss_falls_towards_it(tmp_path, optimizer):
    rates = {"lr_images": 0.03, "lr_targets": 0.03, "lr_rate": 1e-3} if optimizer == "adam" else {"lr_images": 0.3, "lr_targets": 0.3}
    spec = spec_of(iterations=250, optimizer=optimizer, **rates)
    curve = [value for _, value in go(tmp_path, spec, begin(spec, blur=0.7))["matching_loss"]]
    assert len(curve) == 250
    assert sum(curve[-10:]) < 0.2 * sum(curve[:10])


def test_an_iteration_is_the_papers_algorithm(tmp_path):
    """Three iterations against a plain reading of it: draw, unroll with every graph kept, differentiate once, step."""
    spec = spec_of(iterations=3, batch_size=4, inner_momentum=0.8, outer_momentum=0.0, lr_rate=1e-4)
    experts, network, state, random = experts_on(tmp_path / "experts"), network_of(), begin(spec, 0.5), generator(3, "matching")
    images, targets, rate = (t.clone().requires_grad_(True) for t in (state.images, state.targets, state.rate))
    losses = []
    for _ in range(3):
        expert, epoch = (int(torch.randint(n, (), generator=random)) for n in (3, spec.max_start_epoch + 1))
        start, goal = experts.row(expert, epoch), experts.row(expert, epoch + 1)
        theta, velocity = start.clone().requires_grad_(True), torch.zeros_like(start)
        for batch in batches_of(SET, 4, STEPS, random):
            loss = inner_loss(network, theta, images[batch], targets[batch])
            velocity = 0.8 * velocity + torch.autograd.grad(loss, theta, create_graph=True)[0]
            theta = theta - rate * velocity
        outer = ((theta - goal) ** 2).sum() / ((start - goal) ** 2).sum()
        found = torch.autograd.grad(outer, (images, targets, rate))
        with torch.no_grad():
            for tensor, gradient, lr in zip((images, targets, rate), found, (1.0, 0.1, 1e-4), strict=True):
                tensor -= lr * gradient
        losses.append([len(losses) + 1, float(outer.detach())])
    curves = go(tmp_path, spec, state, experts)
    assert torch.allclose(torch.tensor(curves["matching_loss"]), torch.tensor(losses), rtol=1e-10)
    for ours, theirs in zip((state.images, state.targets, state.rate), (images, targets, rate), strict=True):
        assert torch.allclose(ours, theirs.detach(), rtol=1e-10, atol=1e-12)


def test_windows_cover_every_expert_and_every_start_and_end_where_the_trajectory_ends(tmp_path):
    experts, seen = experts_on(tmp_path / "experts", epochs=4), []

    class Spy:
        num_experts, num_snapshots = experts.num_experts, experts.num_snapshots

        def row(self, expert, snapshot):
            seen.append((expert, snapshot))
            return experts.row(expert, snapshot)

    spec = spec_of(iterations=80, expert_epochs=2, max_start_epoch=2)
    go(tmp_path, spec, begin(spec), Spy())
    starts, goals = seen[1::2], seen[2::2]  # the first is read to plan the memory
    assert goals == [(expert, epoch + 2) for expert, epoch in starts]
    assert set(starts) == {(expert, epoch) for expert in range(3) for epoch in range(3)}
    assert max(epoch for _, epoch in goals) == experts.num_snapshots - 1


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 30))
def test_batches_are_shuffled_passes_through_the_set(count, size, steps):
    batches = batches_of(count, size, steps, generator(0, "batches"))
    assert len(batches) == steps
    assert all(1 <= len(batch) <= size for batch in batches)
    per_pass = math.ceil(count / size)
    for first in range(0, steps - per_pass + 1, per_pass):
        assert sorted(torch.cat(batches[first : first + per_pass]).tolist()) == list(range(count))


def test_a_window_that_is_not_finite_is_skipped_and_counted(tmp_path):
    spec = spec_of(iterations=14, outer_momentum=0.0)
    state, random = begin(spec, 0.3), generator(3, "matching")
    bad = 0
    for _ in range(14):
        bad += int(torch.randint(3, (), generator=random)) == 1
        torch.randint(3, (), generator=random)
        batches_of(SET, SET, STEPS, random)
    curves = go(tmp_path, spec, state, experts_on(tmp_path / "spoilt", spoil={1}))
    assert 0 < bad == int(state.skipped[0]) <= 7
    assert len(curves["matching_loss"]) == 14 - bad
    assert all(torch.isfinite(tensor).all() for tensor in (state.images, state.targets, state.rate))
    # the same windows without the bad ones lead to the same set
    clean, only = begin(spec, 0.3), experts_on(tmp_path / "experts")
    monkey = State.begin(spec, clean.images, clean.targets, clean.rate, generator(3, "matching"))

    class WithoutMotion:
        num_experts, num_snapshots = 3, only.num_snapshots

        def row(self, expert, snapshot):
            return only.row(expert, snapshot) if expert != 1 else torch.full_like(only.row(1, 0), math.inf)

    go(tmp_path, spec, monkey, WithoutMotion(), work="again")
    assert torch.equal(monkey.images, state.images)


@pytest.mark.parametrize(("iterations", "seen"), [(4, 4), (60, 25)])
def test_too_many_skipped_windows_are_a_divergence_at_any_length(tmp_path, iterations, seen):
    spec = spec_of(iterations=iterations)
    with pytest.raises(DdcoreError, match=f"{seen} of {seen} windows") as caught:
        go(tmp_path, spec, begin(spec), experts_on(tmp_path / "spoilt", spoil={0, 1, 2}))
    assert caught.value.code == "diverged"
    assert "method.lr_images (it was 1)" in caught.value.hint


def test_targets_or_images_that_overflow_are_a_divergence(tmp_path):
    for field in ("images", "targets"):
        spec = spec_of(iterations=1, **{f"lr_{field}": 1e300}, outer_momentum=0.0)
        state = begin(spec, 0.5)
        getattr(state, field).fill_(1e308)
        with pytest.raises(DdcoreError, match=r"diverged|windows|became infinite") as caught:
            go(tmp_path, spec, state, work=field)
        assert caught.value.code == "diverged"


def test_a_runaway_rate_is_held_within_its_bounds_and_named(tmp_path):
    spec = spec_of(lr_rate=1e-3)
    state = begin(spec, rate=RATE / 50)  # where it belongs is out of bounds
    with pytest.raises(DdcoreError, match=r"the learned rate ran from 0\.002 to its bound 0\.06 by iteration 25") as caught:
        go(tmp_path, spec, state)
    assert caught.value.code == "diverged"
    assert "lower method.lr_rate (it was 0.001)" in caught.value.hint
    assert float(state.rate) == pytest.approx(0.06)


def stop_after(calls):
    heard = []

    def due():
        heard.append(None)
        return len(heard) > calls

    return Reporter(should_stop=due)


def test_the_bounds_of_a_resumed_run_are_those_of_the_whole_run(tmp_path):
    spec = spec_of(lr_rate=1e-3)
    with pytest.raises(Stopped):
        go(tmp_path, spec, begin(spec, rate=RATE / 50), reporter=stop_after(20))
    assert float(read_checkpoint(tmp_path / "work", loop.LAYOUT)[0]["rate"]) > RATE / 10
    with pytest.raises(DdcoreError, match=r"ran from 0\.002 to its bound 0\.06"):
        go(tmp_path, spec, begin(spec, rate=RATE / 50))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_that_is_stopped_and_resumed_is_the_same_bit_for_bit(tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr(loop, "CURVE_POINTS", 4)  # so that points of the curve average over a stop
    spec = spec_of(iterations=22, batch_size=4, optimizer=optimizer, lr_images=0.05, lr_targets=0.05)
    straight = begin(spec, 0.5, torch.float32)
    curves = go(tmp_path, spec, straight, work="straight")
    for calls in (0, 8, 7):
        with pytest.raises(Stopped):
            go(tmp_path, spec, begin(spec, 0.5, torch.float32), reporter=stop_after(calls))
    assert read_checkpoint(tmp_path / "work", loop.LAYOUT)[1]["iteration"] == 15
    resumed = begin(spec, 0.5, torch.float32)
    assert go(tmp_path, spec, resumed) == curves
    assert [x for x, _ in curves["matching_loss"]] == [5, 10, 15, 20, 22]
    for name in ("images", "targets", "rate", "skipped"):
        assert torch.equal(getattr(resumed, name), getattr(straight, name)), name


def test_a_run_that_is_resumed_with_another_core_says_so(tmp_path):
    spec = spec_of(iterations=6)
    with pytest.raises(Stopped):
        go(tmp_path, spec, begin(spec, 0.5), reporter=stop_after(3), core=Core(network_of()))
    for core in (Core(network_of()), ExplicitConvNet(network_of(), EagerBlocks())):
        notes = []
        reporter = Reporter(sink=lambda e, notes=notes: notes.append(e["text"]) if e["type"] == "note" else None)
        go(tmp_path, spec, begin(spec, 0.5), reporter=reporter, core=core)
        said = [note for note in notes if "goes on with the explicit, eager blocks core from a checkpoint of the generic core" in note]
        assert len(said) == (core.name != "generic")


class Traced(Replayed):
    """A graph on the CPU: the operations of the first iteration, run again on the very memory that they were recorded with."""

    def __init__(self, work, device, note, capture):
        assert capture is None
        super().__init__(work, device, pytest.fail, self.capture)
        self.captures = 0

    def capture(self, work):
        self.captures += 1
        traced, results = make_fx(work)(), work()

        def replay():
            for result, new in zip(results, traced(), strict=True):
                result.copy_(new)

        return replay, results


@pytest.mark.parametrize("changes", [{}, {"augment": ["flip", "scale", "saturation", "cutout"]}], ids=["plain", "views"])
def test_what_an_iteration_reads_stays_where_a_graph_found_it_also_after_a_stop(tmp_path, monkeypatch, changes):
    """All of it is replayed from one recording, as on CUDA; what had moved would be read as it was when it was recorded."""
    spec = spec_of(iterations=9, batch_size=4, optimizer="adam", lr_images=0.05, lr_targets=0.05, lr_rate=1e-2, **changes)
    core, experts = ExplicitConvNet(network_of(), EagerBlocks()), experts_on(tmp_path / "experts")  # all in torch's own operations
    made, views = [], []

    def places(state):
        return [t.data_ptr() for t in (state.images, state.targets, state.rate, *(kept for v in views for kept in v._kept.values()))]

    class Watched(loop.Views):
        def __init__(self, *args):
            super().__init__(*args)
            views.append(self)

    def run(work, stop=100):
        (tmp_path / work).mkdir(exist_ok=True)
        views.clear()
        state, seen = begin(spec, 0.5), []
        before = places(state)
        calls = iter(range(stop))

        def due():
            seen.append(places(state))
            return next(calls, None) is None

        try:
            match(OuterLoss(core, spec), Windows(experts, spec), spec, state, tmp_path / work, Reporter(should_stop=due))
        finally:
            seen.append(places(state))
            assert before == seen[0][: len(before)]  # the checkpoint was read by then, and there are views
            assert all(now == seen[0] for now in seen)
            assert len(seen[0]) == 3 + ("augment" in changes) * 4
        return state

    monkeypatch.setattr(loop, "Views", Watched)
    plain = run("plain")
    monkeypatch.setattr(loop, "Replayed", lambda *args: made.append(Traced(*args)) or made[-1])
    with pytest.raises(Stopped):
        run("replayed", 5)
    resumed = run("replayed")
    assert [one.captures for one in made] == [1, 1]
    for name in ("images", "targets", "rate"):
        assert torch.equal(getattr(resumed, name), getattr(plain, name)), name
        assert not torch.equal(getattr(plain, name), getattr(begin(spec, 0.5), name))


def test_a_crash_costs_no_more_than_the_work_since_the_last_checkpoint(tmp_path):
    spec, heard = spec_of(iterations=12), []

    def crash(event):
        heard.append(event)
        if len(heard) == 14:
            raise RuntimeError("the power went")

    straight = begin(spec, 0.5)
    curves = go(tmp_path, spec, straight, work="straight")
    with pytest.raises(RuntimeError, match="power"):
        go(tmp_path, spec, begin(spec, 0.5), reporter=Reporter(sink=crash, checkpoint_seconds=0.0))
    again, told = begin(spec, 0.5), []
    assert go(tmp_path, spec, again, reporter=Reporter(sink=told.append)) == curves
    done = [event["done"] for event in told if event["type"] == "progress"]
    # Also what the crashed run had said last, which nobody may have heard.
    points = [[event["x"], event["value"]] for event in told if event["type"] == "metric" and event["name"] == "matching_loss"]
    assert points == curves["matching_loss"]
    assert done[0] > 0
    assert torch.equal(again.images, straight.images)


class Late:
    """Stands for what keeps a CUDA device from having too much before it: time passes there, and it asks whether to stop."""

    def __init__(self, device, most):
        assert most >= 1, "or the device would wait for the host"

    def mark(self, pulse):
        pulse()


def test_a_run_is_stopped_while_it_waits_for_the_device_and_resumed_bit_for_bit(tmp_path, monkeypatch):
    spec = spec_of(iterations=12, batch_size=4)
    straight = begin(spec, 0.5, torch.float32)
    curves = go(tmp_path, spec, straight, work="straight")
    monkeypatch.setattr(loop, "Ahead", Late)
    monkeypatch.setattr(events, "PULSE", 0.0)
    looks = 0
    while True:
        looks += 1  # once at each of the first looks: before iterations, and at each step inside, where the iteration is done again
        state = begin(spec, 0.5, torch.float32)
        try:
            found = go(tmp_path, spec, state, reporter=stop_after(looks))
            break
        except Stopped:
            continue
    assert looks > 12
    assert found == curves
    for name in ("images", "targets", "rate"):
        assert torch.equal(getattr(state, name), getattr(straight, name)), name


def test_nothing_is_broken_off_while_a_graph_is_recorded(monkeypatch):
    recording, asked = True, []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: recording)
    pulse = loop._unless_recording(lambda: asked.append("whether to stop"))
    pulse()
    assert asked == []
    recording = False
    pulse()
    assert asked == ["whether to stop"]
