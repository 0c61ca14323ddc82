"""Experts that teach themselves: what is recorded of a run of the student network by the teacher's recipe."""

import itertools
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from ddcore.data.images import Images
from ddcore.errors import Stopped
from ddcore.events import Reporter
from ddcore.experts.ssl_paths import StudentRun
from ddcore.experts.store import Trajectories
from ddcore.experts.train import train_experts
from ddcore.networks.flat import build_student
from ddcore.specs import ExpertsSpec, StudentSpec
from ddcore.ssl import train as ssl_train
from ddcore.ssl.dino import momentum_at
from ddcore.task import Task, generator

STUDENT = {"name": "convnet", "depth": 1, "width": 4}
COUNT, DIM, SHAPE, EPOCHS = 24, 5, (1, 6, 6), 3
COMMON = {
    "backbone": {"name": "convnet", "width": 4, "depth": 1}, "epochs": EPOCHS, "batch_size": 8, "lr": 0.01, "warmup_epochs": 0,
    "augment": {"crop_scale": [0.6, 1.0], "jitter": 0.0, "grayscale": 0.0, "noise": 0.1},
}  # fmt: skip
DINO = {"ssl": "dino", "out_dim": 16, "hidden_dim": 16, "bottleneck_dim": 8, "momentum": 0.8, "freeze_last_layer_epochs": 0} | COMMON
SIMCLR = {"ssl": "simclr", "projector_dim": 8} | COMMON
BARLOW = {"ssl": "barlow_twins", "projector_dim": 8} | COMMON
STEPS = EPOCHS * COUNT // 8


@pytest.fixture
def world(tmp_path):
    make = generator(0, "world")
    images = torch.randint(256, (COUNT, *SHAPE), generator=make).to(torch.uint8)
    for name in ("dataset", "targets"):
        (tmp_path / name).mkdir()
    Images(images, None, ()).save(tmp_path / "dataset" / "dataset.safetensors")
    save_file({"targets": torch.randn(COUNT, DIM, generator=make)}, tmp_path / "targets" / "targets.safetensors")

    def go(out="out", first=0, count=2, reporter=None, path="teacher", teacher=DINO, epochs=STEPS, **more):
        for name in (out, f"work-{out}"):
            (tmp_path / name).mkdir(exist_ok=True)
        params = {
            "experts": ExpertsSpec().model_dump(mode="json", exclude={"num", "per_shard"}), "student": STUDENT, "epochs": epochs,
            "first": first, "count": count, "seed": 4, "path": path, "teacher": teacher,
        } | more  # fmt: skip
        inputs = {"dataset": [tmp_path / "dataset"], "targets": [tmp_path / "targets"]}
        task = Task(params, inputs, tmp_path / out, tmp_path / f"work-{out}", reporter or Reporter(), torch.device("cpu"))
        summary = train_experts(task)
        found = Trajectories([task.out])
        paths = [torch.stack([found.row(i, t) for t in range(found.num_snapshots)]) for i in range(found.num_experts)]
        return torch.stack(paths), json.loads((task.out / "history.json").read_text()), summary

    return go


def student():
    return build_student(StudentSpec(**STUDENT), SHAPE, DIM)


@pytest.mark.parametrize(("path", "teacher"), [("teacher", DINO), ("student", DINO), ("student", SIMCLR), ("student", BARLOW)])
def test_a_path_is_of_the_whole_student_network_from_the_initialisation_that_other_experts_have(world, path, teacher):
    paths, history, summary = world(path=path, teacher=teacher, epochs=EPOCHS)
    assert paths.shape == (2, EPOCHS + 1, student().num_parameters)
    for index in range(2):
        assert torch.equal(paths[index, 0], student().init(generator(4, "expert", index)))
    assert (paths[:, 1:] - paths[:, :-1]).norm(dim=2).min() > 1e-4
    linear = slice(paths.shape[2] - DIM * 4 * 9 - DIM, None)  # the last layer is trained as all others are
    assert (paths[:, -1, linear] - paths[:, 0, linear]).norm(dim=1).min() > 1e-4
    assert [len(losses) for losses in history["loss"]] == [EPOCHS] * 2
    assert all(math.isfinite(loss) for losses in history["loss"] for loss in losses)
    assert summary["parameters"] == paths.shape[2]


def test_the_teachers_path_is_the_moving_average_of_the_students(world):
    """With a snapshot at every step: bar_{n+1} = m_n bar_n + (1 - m_n) theta_{n+1}, m_n DINO's rising momentum."""
    averages, _, _ = world("teacher", path="teacher")
    thetas, _, _ = world("student", path="student")
    assert torch.equal(averages[:, 0], thetas[:, 0])
    expected = averages[:, 0].double()
    for step in range(STEPS):
        momentum = momentum_at(step, STEPS, 0.8)
        expected = momentum * expected + (1 - momentum) * thetas[:, step + 1].double()
        assert torch.allclose(averages[:, step + 1].double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(averages[:, -1], thetas[:, -1], atol=1e-3)


def test_fewer_snapshots_are_those_of_the_same_run_evenly_spaced(world):
    every, losses, _ = world("every", count=1)
    some, means, _ = world("some", count=1, epochs=EPOCHS)
    assert torch.equal(some, every[:, :: STEPS // EPOCHS])
    expected = torch.tensor(losses["loss"][0]).view(EPOCHS, -1).mean(1).tolist()
    assert means["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_experts_of_one_start_differ_in_what_they_see_alone(world):
    alike, _, _ = world("alike", same_start=True, count=3)
    assert torch.equal(alike[:, 0], student().init(generator(4, "start")).expand(3, -1))
    for one, other in itertools.combinations(alike, 2):
        assert not torch.allclose(one[-1], other[-1], atol=1e-4)


@pytest.mark.parametrize("teacher", [DINO, BARLOW], ids=["dino", "barlow_twins"])
def test_experts_of_one_start_have_heads_of_one_start_too(world, monkeypatch, teacher):
    """Else their scatter would tell of their heads."""
    begun, train = [], StudentRun.train

    def spy(run):
        parts = run.objective.modules.items()
        begun.append({f"{name}.{key}": value.clone() for name, part in parts for key, value in part.state_dict().items()})
        train(run)

    monkeypatch.setattr(StudentRun, "train", spy)
    path = "teacher" if teacher is DINO else "student"
    world("alike", path=path, teacher=teacher, same_start=True, epochs=EPOCHS)
    one, other = begun
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    begun.clear()
    world("each its own", path=path, teacher=teacher, epochs=EPOCHS)
    one, other = begun
    heads = [name for name, value in one.items() if "head" in name and value.ndim > 1]
    assert heads
    assert not any(torch.equal(one[name], other[name]) for name in heads)


def test_gradients_are_not_compared_again_in_every_experts_run(world, monkeypatch):
    plain, _, _ = world("plain", count=1, epochs=EPOCHS)
    monkeypatch.setattr(ssl_train, "gradient_noise", None)
    told, _, _ = world("told", count=1, epochs=EPOCHS, teacher=DINO | {"gradient_batches": 2})
    assert torch.equal(told, plain)


def test_a_run_of_its_own_that_collapsed_is_told_of(world):
    heard = []
    reporter = Reporter(sink=lambda event: heard.append(event["text"]) if event["type"] == "note" else None)
    world("well", teacher=DINO | {"teacher_temperature": 0.2, "warmup_teacher_temperature": 0.2}, reporter=reporter, epochs=EPOCHS)
    world("other", path="student", teacher=SIMCLR, reporter=reporter, epochs=EPOCHS)
    assert heard == []
    blurred = DINO | {"teacher_temperature": 100.0, "warmup_teacher_temperature": 100.0}
    world("collapsed", teacher=blurred, reporter=reporter, epochs=EPOCHS)
    assert [text.partition(":")[0] for text in heard] == ["expert 0", "expert 1"]
    assert all("nearly uniform" in text and "teacher.teacher_temperature" in text for text in heard)


@pytest.mark.parametrize("same_start", [False, True])
def test_an_expert_does_not_depend_on_its_shard(world, same_start):
    together, history, _ = world(count=3, same_start=same_start, epochs=EPOCHS)
    split = [world(f"shard-{first}", first=first, count=count, same_start=same_start, epochs=EPOCHS) for first, count in ((0, 1), (1, 2))]
    assert torch.equal(torch.cat([paths for paths, _, _ in split]), together)
    assert [loss for _, part, _ in split for loss in part["loss"]] == history["loss"]
    assert len({tuple(path[-1, :3].tolist()) for path in together}) == 3


@pytest.mark.parametrize(("path", "teacher"), [("teacher", DINO), ("student", BARLOW)])
def test_a_shard_that_is_stopped_anywhere_resumes_bit_for_bit(world, path, teacher):
    straight, history, _ = world("straight", path=path, teacher=teacher, epochs=EPOCHS)
    heard = []
    for calls in (0, 4, 11):  # at once, in the first expert, in the second
        left = iter(range(calls))
        reporter = Reporter(should_stop=lambda left=left: next(left, None) is None)
        with pytest.raises(Stopped):
            world("resumed", path=path, teacher=teacher, epochs=EPOCHS, reporter=reporter)
    last = Reporter(sink=lambda event: heard.append(event) if event["type"] == "progress" else None)
    resumed, again, _ = world("resumed", path=path, teacher=teacher, epochs=EPOCHS, reporter=last)
    assert torch.equal(resumed, straight)
    assert again == history
    assert next(event["done"] for event in heard if event["done"] != STEPS) > STEPS  # the first expert was whole by then
    assert {event["total"] for event in heard} == {2 * STEPS}
    assert heard[-1]["done"] == 2 * STEPS


def test_more_snapshots_than_points_of_a_curve_leave_no_hole_in_the_losses(world, monkeypatch):
    """A run's own curve is thinned; what experts leave must be numbers all the same, for JSON knows no NaN."""
    _, whole, _ = world("whole", path="student", teacher=SIMCLR, count=1)
    monkeypatch.setattr(ssl_train, "POINTS", 4)  # of nine steps every second one is a point
    _, thin, summary = world("thin", path="student", teacher=SIMCLR, count=1)
    expected = [whole["loss"][0][step - step % 2] for step in range(STEPS)]
    assert thin["loss"][0] == expected
    assert summary["final_loss"] == expected[-1]
