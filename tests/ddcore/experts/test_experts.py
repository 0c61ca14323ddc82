"""Experts against torch's own optimiser, step by step; their snapshots, averages, shards and resumption."""

import gc
import json
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ddcore.data.augment import random_views
from ddcore.data.images import Images, mean_std, normalise
from ddcore.errors import DdcoreError, Stopped
from ddcore.events import Reporter
from ddcore.experts import train
from ddcore.experts.sgd import MOST, Lane, in_flight
from ddcore.experts.store import Trajectories
from ddcore.experts.train import train_experts
from ddcore.networks.convnet import ConvNet
from ddcore.networks.flat import build_student
from ddcore.specs import AugmentSpec, StudentSpec
from ddcore.task import Resources, Task, generator

STUDENT = {"name": "convnet", "depth": 1, "width": 5}
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "batch_size": 8, "ema": None}
EPOCHS, COUNT = 3, 21  # two batches of eight and one of five


@pytest.fixture
def world(tmp_path):
    make = generator(0, "world")
    images = torch.randint(256, (COUNT, 2, 5, 4), generator=make).to(torch.uint8)
    targets = torch.randn(COUNT, 3, generator=make)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "targets").mkdir()
    Images(images, None, ()).save(tmp_path / "dataset" / "dataset.safetensors")
    save_file({"targets": targets}, tmp_path / "targets" / "targets.safetensors")

    def go(out="out", first=0, count=2, reporter=None, short_of_memory=False, **changes):
        for name in (out, f"work-{out}"):
            (tmp_path / name).mkdir(exist_ok=True)
        params = {"experts": SGD | changes, "student": STUDENT, "epochs": EPOCHS, "first": first, "count": count, "seed": 4}
        inputs = {"dataset": [tmp_path / "dataset"], "targets": [tmp_path / "targets"]}
        work = tmp_path / f"work-{out}"
        resources = Resources(short_of_memory=short_of_memory)
        task = Task(params, inputs, tmp_path / out, work, reporter or Reporter(), torch.device("cpu"), resources)
        summary = train_experts(task)
        found = Trajectories([task.out])
        paths = torch.stack([torch.stack([found.row(i, t) for t in range(EPOCHS + 1)]) for i in range(count)])
        return paths, json.loads((task.out / "history.json").read_text()), summary

    go.images, go.targets = images, targets
    return go


def by_torch(world, index, **changes):
    """Expert `index` by torch.optim.SGD on an ordinary module: its parameters after every step, and each epoch's mean loss."""
    fields = SGD | changes
    views = AugmentSpec(**fields["augment"]) if "augment" in fields else None
    mean, std = mean_std(world.images)
    random = generator(4, "expert", index)
    net = ConvNet(2, 5, 4, 3, 1, 5)
    torch.nn.utils.vector_to_parameters(build_student(StudentSpec(**STUDENT), (2, 5, 4), 3).init(random), net.parameters())
    optimiser = torch.optim.SGD(net.parameters(), **{k: fields[k] for k in ("lr", "momentum", "weight_decay")})
    thetas, losses = [torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()], []
    for _ in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(COUNT, generator=random).split(fields["batch_size"]):
            pixels = world.images[batch] if views is None else random_views(world.images[batch], views, random)
            loss = ((net(normalise(pixels, mean, std)) - world.targets[batch]) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(batch)
            thetas.append(torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone())
        losses.append(total / COUNT)
    return torch.stack(thetas), losses


def test_a_trajectory_is_what_torchs_sgd_leaves_at_each_epoch(world):
    paths, history, summary = world()
    assert paths.shape == (2, EPOCHS + 1, summary["parameters"])
    for index in range(2):
        thetas, losses = by_torch(world, index)
        assert torch.equal(paths[index, 0], thetas[0])
        assert torch.allclose(paths[index], thetas[::3], rtol=1e-4, atol=1e-5)
        assert history["loss"][index] == pytest.approx(losses, rel=1e-4)
    assert summary["final_loss"] == pytest.approx(sum(losses[-1] for losses in history["loss"]) / 2)
    assert (paths[:, 1:] - paths[:, :-1]).norm(dim=2).min() > 0.01  # clones: each epoch has its own


def test_batches_larger_than_the_set_are_the_whole_set(world):
    whole, _, _ = world(batch_size=COUNT, count=1)
    larger, _, _ = world("larger", batch_size=1000, count=1)
    assert torch.equal(whole, larger)
    assert torch.allclose(whole[0], by_torch(world, 0, batch_size=COUNT)[0], rtol=1e-4, atol=1e-5)


def test_an_averaged_path_is_the_moving_average_in_closed_form(world):
    decay = 0.8
    paths, _, _ = world(count=1, ema=decay)
    thetas = by_torch(world, 0)[0].double()
    for epoch in range(EPOCHS + 1):
        steps = 3 * epoch
        weights = torch.tensor([decay**steps] + [(1 - decay) * decay ** (steps - t) for t in range(1, steps + 1)], dtype=torch.float64)
        assert float(weights.sum()) == pytest.approx(1.0)
        assert torch.allclose(paths[0, epoch].double(), weights @ thetas[: steps + 1], rtol=1e-3, atol=1e-5)


def test_an_expert_does_not_depend_on_its_shard(world):
    together, history, _ = world(count=5)
    split = [world(f"shard-{first}", first=first, count=count) for first, count in ((0, 1), (1, 3), (4, 1))]
    assert torch.equal(torch.cat([paths for paths, _, _ in split]), together)
    assert [loss for _, part, _ in split for loss in part["loss"]] == history["loss"]
    assert len({tuple(path[0, :3].tolist()) for path in together}) == 5


def test_augmented_experts_see_views_of_the_images_and_the_targets_of_the_whole_ones(world):
    augment = {"crop_scale": [0.5, 1.0], "jitter": 1.0, "noise": 0.1}
    paths, history, _ = world(augment=augment)
    for index in range(2):
        thetas, losses = by_torch(world, index, augment=augment)
        assert torch.allclose(paths[index], thetas[::3], rtol=1e-4, atol=1e-5)
        assert history["loss"][index] == pytest.approx(losses, rel=1e-4)
    assert not torch.allclose(paths, world("plain")[0], atol=0.01)


@pytest.mark.parametrize("changes", [{}, {"ema": 0.7}, {"augment": {"crop_scale": [0.5, 1.0]}}], ids=["plain", "ema", "augmented"])
def test_several_experts_in_flight_are_what_they_are_alone(world, monkeypatch, changes):
    alone, history, summary = world("alone", count=5, **changes)
    monkeypatch.setattr(train, "in_flight", lambda *_: 3)  # and then the two that are left
    together, again, also = world("together", count=5, **changes)
    assert torch.equal(alone, together)
    assert (history, summary) == (again, also)
    heard = []
    for calls in (4, 7, 1):  # in the second epoch of the first three, in the first epoch of the others, and at its end
        left = iter(range(calls))
        with pytest.raises(Stopped):
            world("resumed", count=5, reporter=Reporter(should_stop=lambda left=left: next(left, None) is None), **changes)
    resumed, again, _ = world("resumed", count=5, reporter=Reporter(sink=heard.append), **changes)
    assert torch.equal(alone, resumed)
    assert history == again
    assert heard[0]["done"] == 3 * EPOCHS * 3 + 2 * 3
    assert heard[0]["total"] == 5 * EPOCHS * 3


def test_experts_for_which_there_was_no_room_side_by_side_go_on_one_at_a_time(world, monkeypatch):
    straight, history, _ = world("straight", count=5)
    monkeypatch.setattr(train, "in_flight", lambda *_: 3)
    left, groups, train_group = iter(range(4)), [], train._train_group
    with pytest.raises(Stopped):
        world("resumed", count=5, reporter=Reporter(should_stop=lambda: next(left, None) is None))
    monkeypatch.setattr(train, "_train_group", lambda *given: (groups.append(len(given[4])), train_group(*given)))
    resumed, again, _ = world("resumed", count=5, short_of_memory=True)
    assert groups == [1, 1, 1, 1, 1]
    assert torch.equal(straight, resumed)
    assert history == again


def test_experts_are_trained_side_by_side_only_where_they_leave_a_gpu_idle():
    small, large = (build_student(StudentSpec(depth=3, width=width), (3, 32, 32), 10) for width in (4, 128))
    other = build_student(StudentSpec(name="resnet10", width=16), (3, 32, 32), 10)
    assert in_flight(small, 256, torch.device("cpu")) == 1
    assert [in_flight(network, 256, torch.device("cuda")) for network in (small, large, other)] == [MOST, 1, 1]


@pytest.mark.parametrize("captures", [True, False])
@pytest.mark.parametrize("ema", [None, 0.7])
def test_an_expert_whose_steps_are_replayed_is_the_same(world, monkeypatch, captures, ema):
    """A stand-in for CUDA's capture: it too runs the work a few times first, and hands back what runs it again."""
    direct, history, _ = world("direct", ema=ema)
    attempts = []

    def capture(work):
        work()
        work()
        attempts.append(work)
        if not captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        return work, ()

    monkeypatch.setattr(train, "Lane", partial(Lane, capture=capture))
    replayed, again, _ = world("replayed", ema=ema)
    assert torch.equal(direct, replayed)
    assert history == again
    assert len(attempts) == 2 * (2 if captures else 1)  # of each expert: whole batches, and the last one; or one attempt


@pytest.mark.parametrize("stopped", [False, True])
def test_graphs_and_lanes_are_gone_when_their_group_is_without_the_garbage_collector(world, monkeypatch, stopped):
    lanes, graphs, alive = [], [], []

    class Graph:
        """Like CUDA's, it does not hold on to the work; here its replay does nothing."""

        def replay(self):
            pass

    def capture(work):
        graph = Graph()
        graphs.append(weakref.ref(graph))
        return graph.replay, ()

    class Watched(Lane):
        def __init__(self, *args):
            alive.append(sum(ref() is not None for ref in lanes + graphs))
            super().__init__(*args, capture)
            lanes.append(weakref.ref(self))

    monkeypatch.setattr(train, "Lane", Watched)
    monkeypatch.setattr(train, "in_flight", lambda *_: 2)
    calls = iter(range(3 * EPOCHS + 2 if stopped else 1000))
    gc.disable()
    try:
        if stopped:  # in the first epoch of the second group, in which there are graphs already
            with pytest.raises(Stopped) as caught:
                world(count=4, reporter=Reporter(should_stop=lambda: next(calls, None) is None))
            assert caught.traceback  # which still knows the lanes, but not their graphs
            assert [ref() for ref in graphs] == [None] * 6
        else:
            world(count=4)
            assert [ref() for ref in lanes + graphs] == [None] * (4 + 8)
    finally:
        gc.enable()
    assert alive == [0, 1, 0, 1]  # when a lane begins, only that of the same group


def test_differences_are_stored_if_asked_for_and_their_error_is_stated(world):
    whole, history, summary = world("whole")
    stored, again, also = world("stored", storage="bf16_deltas")
    assert "storage_error" not in history | summary
    error = again["storage_error"]
    assert again == history | {"storage_error": error}
    assert also == summary | {"storage_error": error}
    assert 1e-4 < error["mean"] <= error["max"] < 0.005
    apart = (stored - whole).norm(dim=2)[:, 1:] / (whole - whole[:, :1]).norm(dim=2)[:, 1:]
    assert float(apart.max()) == pytest.approx(error["max"], rel=1e-3)


@pytest.mark.parametrize("ema", [None, 0.7])
def test_a_shard_that_is_stopped_anywhere_resumes_bit_for_bit(world, ema):
    straight, history, _ = world("straight", count=3, ema=ema)
    heard = []
    for calls in (0, 1, 5, 4, 7):  # in the middle of epochs, and of experts; counted from where the last attempt began
        left = iter(range(calls))
        reporter = Reporter(should_stop=lambda left=left: next(left, None) is None)
        with pytest.raises(Stopped):
            world("resumed", count=3, ema=ema, reporter=reporter)
    last = Reporter(sink=heard.append)
    paths, again, _ = world("resumed", count=3, ema=ema, reporter=last)
    assert torch.equal(paths, straight)
    assert again == history
    assert heard[0]["done"] == 0 + 1 + 5 + 4 + 7  # no step was done twice
    assert heard[0]["total"] == 27


def test_a_crash_resumes_from_the_last_step_kept(world):
    straight, history, _ = world("straight", count=2)
    calls = iter(range(11))

    def power():
        if next(calls, None) is None:
            raise RuntimeError("the power went")
        return False

    with pytest.raises(RuntimeError, match="power"):
        world("crashed", reporter=Reporter(should_stop=power, checkpoint_seconds=0.0))
    heard = []
    paths, again, _ = world("crashed", reporter=Reporter(sink=heard.append))
    assert torch.equal(paths, straight)
    assert again == history
    assert heard[0]["done"] == 11


def test_divergence_is_named_with_what_to_lower(world):
    with pytest.raises(DdcoreError, match=r"an expert's loss became (inf|nan) in epoch 1") as caught:
        world(lr=1e30)
    assert caught.value.code == "diverged"
    assert "lower experts.lr (it was 1e+30)" in caught.value.hint


def test_the_file_says_what_a_reader_needs(world, tmp_path: Path):
    world(first=3)
    found = Trajectories([tmp_path / "out"])
    assert (found.num_experts, found.num_snapshots) == (2, EPOCHS + 1)
    with safe_open(tmp_path / "out" / "experts.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()["potstill"])
    assert StudentSpec(**said["student"]) == StudentSpec(**STUDENT)
    assert len(said["mean"]) == len(said["std"]) == 2
    assert json.loads((tmp_path / "out" / "history.json").read_text())["first"] == 3
