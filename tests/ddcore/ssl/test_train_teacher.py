"""The teacher step: what it leaves, the identities of its trajectory, resuming, and every way to fail."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ddcore.data.images import Images, load_dataset, mean_std
from ddcore.errors import DdcoreError, Stopped
from ddcore.events import Reporter
from ddcore.specs import DinoSpec, DistillSpec
from ddcore.ssl import dino, train
from ddcore.ssl.dino import ema_update, momentum_at
from ddcore.ssl.teacher import load_teacher
from ddcore.ssl.train import learning_rate, train_teacher
from ddcore.ssl.trajectory import read_trajectory
from ddcore.task import Task

MakeTask = Callable[..., Task]

TINY: dict[str, Any] = {
    "backbone": {"name": "convnet", "width": 8, "depth": 2},
    "epochs": 3,
    "batch_size": 32,
    "warmup_epochs": 1,
    "snapshots": 10,
    "augment": {"flip": False, "jitter": 0.0, "grayscale": 0.0, "noise": 0.05, "crop_scale": [0.6, 1.0]},
}
DINO = {"ssl": "dino", "out_dim": 16, "hidden_dim": 16, "bottleneck_dim": 8, "momentum": 0.9, "local_crops": 1, **TINY}
BARLOW = {"ssl": "barlow_twins", "projector_dim": 16, **TINY}
SINKHORN = {**DINO, "centering": "sinkhorn", "koleo": 0.1}
SIMCLR = {"ssl": "simclr", "projector_dim": 16, **TINY}


def params(teacher: dict[str, Any], seed: int = 0, **changes: Any) -> dict[str, Any]:
    return {"teacher": {**teacher, **changes}, "seed": seed}


def state(folder: Path) -> tuple[bytes, bytes, Any]:
    """All of a teacher that must be equal bit for bit."""
    files = [(folder / name).read_bytes() for name in ("teacher.safetensors", "trajectory.safetensors")]
    return files[0], files[1], json.loads((folder / "history.json").read_text())


@pytest.mark.parametrize("teacher", [DINO, BARLOW, SIMCLR], ids=["dino", "barlow_twins", "simclr"])
def test_files_and_facts(make_task: MakeTask, dataset: Path, teacher: dict[str, Any]) -> None:
    events: list[dict[str, Any]] = []
    before = torch.random.get_rng_state()
    task = make_task("a", params(teacher), Reporter(sink=events.append), dataset=dataset)
    summary = train_teacher(task)
    assert torch.equal(torch.random.get_rng_state(), before)  # randomness is the run's own
    module, manifest = load_teacher(task.out)
    data = load_dataset(dataset)
    mean, std = mean_std(data.images)
    assert (manifest.mean, manifest.std, manifest.in_channels, manifest.image_size) == (mean, std, 1, (8, 8))
    assert (manifest.ssl, manifest.feature_dim, manifest.backbone["width"]) == (teacher["ssl"], 32, 8)
    assert manifest.knn_accuracy is not None
    assert 10 < manifest.knn_accuracy <= 100
    assert 1.5 < manifest.feature_rank <= 32
    assert manifest.images_per_second is not None
    assert manifest.images_per_second > 0
    assert (summary["knn_accuracy"], summary["images_per_second"]) == (manifest.knn_accuracy, manifest.images_per_second)
    assert not module.training
    trajectory = load_file(task.out / "trajectory.safetensors")
    width = sum(p.numel() for p in module.parameters())
    assert trajectory["step"].tolist() == list(range(10))  # 3 epochs of 3 steps
    assert {name: tuple(t.shape) for name, t in trajectory.items() if name != "step"} == dict.fromkeys(
        ("student", "teacher") if teacher is DINO else ("student",), (10, width)
    )
    assert len({tuple(row.tolist()) for row in trajectory["student"]}) == 10  # cloned: no two snapshots share memory
    kept = torch.cat([p.flatten() for p in module.parameters()])
    assert torch.equal(kept, trajectory["teacher" if teacher is DINO else "student"][-1])
    history = json.loads((task.out / "history.json").read_text())
    assert [step for step, _ in history["loss"]] == list(range(9))
    assert set(history) == {"loss", "lr", "knn"} | ({"entropy", "kl", "ema_momentum", "ema_residual"} if teacher is DINO else set())
    assert {e["name"] for e in events if e["type"] == "metric"} == set(history)
    assert any("images/s" in e["note"] for e in events if e["type"] == "progress")


def test_the_recorded_teacher_is_the_moving_average_of_the_recorded_student(make_task: MakeTask, dataset: Path) -> None:
    task = make_task("a", params(DINO), dataset=dataset)
    summary = train_teacher(task)
    trajectory = load_file(task.out / "trajectory.safetensors")
    student, teacher = trajectory["student"].double(), trajectory["teacher"].double()
    assert torch.equal(student[0], teacher[0])
    residuals = [value for _, value in json.loads((task.out / "history.json").read_text())["ema_residual"]]
    assert len(residuals) == 9
    assert summary["ema_residual"] == max(residuals) < 1e-5
    momenta = [momentum_at(step, 9, 0.9) for step in range(9)]
    history = json.loads((task.out / "history.json").read_text())
    assert [m for _, m in history["ema_momentum"]] == momenta
    closed = teacher[0]
    for t, m in enumerate(momenta, start=1):
        torch.testing.assert_close(teacher[t], m * teacher[t - 1] + (1 - m) * student[t], rtol=0, atol=1e-6)
        closed = m * closed + (1 - m) * student[t]
        gap = student[t - 1] - teacher[t - 1]
        torch.testing.assert_close(student[t] - teacher[t], m * (gap + student[t] - student[t - 1]), rtol=0, atol=1e-6)
    torch.testing.assert_close(teacher[-1], closed, rtol=0, atol=1e-5)
    assert float((student[-1] - teacher[-1]).norm()) > 1e-3


def _stale(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Never moves the teacher."""


def _swapped(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    ema_update(teacher, student, 1 - momentum)


def _half(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    with torch.no_grad():
        for average, current in zip(teacher.parameters(), student.parameters(), strict=True):
            average.copy_(average.half() * momentum + current.half() * (1 - momentum))


@pytest.mark.parametrize("broken", [_stale, _swapped, _half])
def test_a_broken_moving_average_is_found(
    make_task: MakeTask, dataset: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., None]
) -> None:
    monkeypatch.setattr(dino, "ema_update", broken)
    with pytest.raises(DdcoreError, match="not the moving average of its student") as caught:
        train_teacher(make_task("a", params(DINO, momentum=0.99), dataset=dataset))
    assert caught.value.code == "internal"
    assert "report this message" in caught.value.hint


def test_parameters_that_are_not_finite_are_a_divergence_not_a_broken_average(
    make_task: MakeTask, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
        with torch.no_grad():
            next(teacher.parameters()).fill_(math.inf)

    monkeypatch.setattr(dino, "ema_update", infinite)
    with pytest.raises(DdcoreError, match="parameters are not finite at step 0 of 9") as caught:
        train_teacher(make_task("a", params(DINO), dataset=dataset))
    assert caught.value.code == "diverged"


@pytest.mark.parametrize(
    "teacher", [DINO, SINKHORN, {**SIMCLR, "backbone": {"name": "resnet18", "width": 4}}], ids=["dino", "sinkhorn", "simclr-resnet"]
)
def test_a_stopped_run_goes_on_bit_for_bit(make_task: MakeTask, dataset: Path, teacher: dict[str, Any]) -> None:
    whole = make_task("whole", params(teacher), dataset=dataset)
    train_teacher(whole)
    for step in (1, 4):
        at = [0]
        heard = itertools.count()  # a second for each thing that is said, so that nothing of it is held back
        stopping = Reporter(
            lambda event, at=at: at.append(event.get("done", at[-1])), lambda at=at, step=step: at[-1] == step, heard.__next__
        )
        with pytest.raises(Stopped):
            train_teacher(make_task(f"at-{step}", params(teacher), stopping, dataset=dataset))
        notes: list[dict[str, Any]] = []
        resumed = make_task(f"at-{step}", params(teacher), Reporter(sink=notes.append), dataset=dataset)
        train_teacher(resumed)
        assert state(resumed.out) == state(whole.out)
        assert {"type": "note", "text": f"resumed at step {step} of 9"} in notes
        losses = [(event["x"], event["value"]) for event in notes if event["type"] == "metric" and event["name"] == "loss"]
        assert losses == [tuple(point) for point in json.loads((whole.out / "history.json").read_text())["loss"]]
    other = make_task("other", params(teacher, seed=1), dataset=dataset)
    train_teacher(other)
    assert state(other.out)[0] != state(whole.out)[0]


def test_runs_of_one_seed_share_their_beginning_only(make_task: MakeTask, dataset: Path) -> None:
    still = {**TINY["augment"], "crop_scale": [1.0, 1.0], "noise": 0.0}  # all views are the same, so orders alone can differ
    teacher = {**DINO, "local_crops": 0, "augment": still, "lr": 1e-2}
    paths = {}
    for name, more in {"plain": {}, "zero": {"run": 0}, "one": {"run": 1}, "again": {"run": 1}, "two": {"run": 2}}.items():
        task = make_task(name, {**params(teacher), **more}, dataset=dataset)
        train_teacher(task)
        paths[name] = load_file(task.out / "trajectory.safetensors")["student"]
    assert torch.equal(paths["plain"], paths["zero"])
    assert torch.equal(paths["one"], paths["again"])
    first = [paths[name] for name in ("plain", "one", "two")]
    assert all(torch.equal(path[0], first[0][0]) for path in first)
    ends = [float((a[-1] - b[-1]).norm() / (a[-1] - a[0]).norm()) for a, b in ((first[0], first[1]), (first[1], first[2]))]
    assert min(ends) > 0.05
    data = load_dataset(dataset)
    tasks = [make_task(f"views-{run}", {**params(DINO), "run": run}, dataset=dataset) for run in (1, 1, 2)]
    one, again, two = (train.Run(DinoSpec(**DINO), data, task)._views(data.images[:8])[0] for task in tasks)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("teacher", [DINO, SIMCLR], ids=["dino", "simclr"])
def test_a_compiled_backbone_learns_the_same(
    make_task: MakeTask, dataset: Path, monkeypatch: pytest.MonkeyPatch, teacher: dict[str, Any]
) -> None:
    graphs: list[Any] = []

    def compiler(graph: Any, inputs: Any) -> Any:  # torch.compile's front, without the minute that its back takes
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(train, "COMPILER", compiler)
    plain, compiled = (make_task(name, params(teacher, compile=name == "compiled"), dataset=dataset) for name in ("plain", "compiled"))
    train_teacher(plain)
    assert not graphs
    train_teacher(compiled)
    assert graphs
    first, second = (load_file(task.out / "teacher.safetensors") for task in (plain, compiled))
    assert list(first) == list(second)  # the names of an ordinary module
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4)
    polls = iter([False] * 4)
    stopping = Reporter(should_stop=lambda: next(polls, True))
    with pytest.raises(Stopped):
        train_teacher(make_task("stopped", params(teacher, compile=True), stopping, dataset=dataset))
    resumed = make_task("stopped", params(teacher, compile=True), dataset=dataset)
    train_teacher(resumed)
    assert state(resumed.out) == state(compiled.out)


def test_bfloat16_on_a_cpu_is_used_where_asked_for_and_hurts_little(make_task: MakeTask, dataset: Path) -> None:
    ends = {}
    for name in ("plain", "halved"):
        task = make_task(name, params(SIMCLR, epochs=10, lr=5e-3, cpu_amp=name == "halved"), dataset=dataset)
        train_teacher(task)
        ends[name] = [value for _, value in json.loads((task.out / "history.json").read_text())["loss"]]
    assert ends["plain"] != ends["halved"]
    assert ends["halved"] == pytest.approx(ends["plain"], rel=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(task.out / "teacher.safetensors").values())


def test_a_vit_learns_by_dinov2s_losses(make_task: MakeTask, dataset: Path) -> None:
    task = make_task("a", params(SINKHORN, backbone={"name": "vit_tiny_patch4"}, epochs=1, batch_size=48, snapshots=2), dataset=dataset)
    summary = train_teacher(task)
    module, manifest = load_teacher(task.out)
    assert (manifest.feature_dim, module.get_parameter("pos_embed").shape) == (192, (1, 5, 192))
    assert summary["ema_residual"] < 1e-5
    assert {"koleo", "entropy", "kl"} <= set(json.loads((task.out / "history.json").read_text()))


@pytest.mark.parametrize(("name", "side"), [("dino-resnet18-32", 32), ("dino-resnet18-64", 64), ("dino-vit-32", 32), ("dino-vit-64", 64)])
def test_a_recipe_trains_at_a_hundredth_of_its_size(make_task: MakeTask, tmp_path: Path, name: str, side: int) -> None:
    images = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Images(images, None, ()).save(tmp_path / "dataset.safetensors")
    small = {
        "epochs": 1,
        "batch_size": 4,
        "local_crops": 2,
        "out_dim": 64,
        "hidden_dim": 32,
        "bottleneck_dim": 16,
        "snapshots": 2,
        "warmup_epochs": 0,
    }
    if "resnet" in name:
        small["backbone"] = {"width": 16}
    teacher = DistillSpec.model_validate({"preset": name, "teacher": small}).teacher
    task = make_task("a", params(teacher.model_dump(mode="json")), dataset=tmp_path)
    summary = train_teacher(task)
    history = json.loads((task.out / "history.json").read_text())
    assert len(history["loss"]) == 2
    assert ({"masked_loss", "koleo"} <= set(history)) is ("vit" in name)
    assert summary["storage_error"]["max"] < 2**-8


@pytest.mark.parametrize("teacher", [DINO, SIMCLR], ids=["dino", "simclr"])
def test_snapshots_of_parts_of_epochs_and_their_short_form(make_task: MakeTask, dataset: Path, teacher: dict[str, Any]) -> None:
    runs = {}
    for storage in ("float32", "gap"):
        task = make_task(storage, params(teacher, snapshot_every=0.5, storage=storage), dataset=dataset)
        summary = train_teacher(task)
        runs[storage] = read_trajectory(task.out)
        assert runs[storage][1].tolist() == [0, 2, 3, 4, 6, 8, 9]  # one and a half steps apart, of nine
        assert ("storage_error" in summary) is (storage == "gap")
    assert summary["storage_error"]["mean"] <= summary["storage_error"]["max"] < 2**-8
    (whole, _), (short, _) = runs["float32"], runs["gap"]
    assert list(whole) == list(short)
    for name, track in whole.items():
        moved = float((track.row(6) - track.row(0)).norm())
        assert float((short[name].row(6) - track.row(6)).norm()) <= summary["storage_error"]["max"] * moved * 1.001
    polls = iter([False] * 5)
    with pytest.raises(Stopped):
        train_teacher(make_task("stopped", task.params, Reporter(should_stop=lambda: next(polls, True)), dataset=dataset))
    resumed = make_task("stopped", task.params, dataset=dataset)
    assert train_teacher(resumed)["storage_error"] == summary["storage_error"]
    assert state(resumed.out) == state(task.out)


@pytest.mark.parametrize("backbone", [{"name": "resnet18", "width": 4}, {"name": "vit_tiny_patch4"}], ids=["resnet18", "vit"])
def test_local_crops_of_their_own_size_are_what_the_student_reads(
    make_task: MakeTask, dataset: Path, monkeypatch: pytest.MonkeyPatch, backbone: dict[str, Any]
) -> None:
    sizes: list[list[tuple[int, ...]]] = []
    plain = dino.Dino.loss

    def loss(self: Any, views: list[torch.Tensor], *more: Any) -> Any:
        sizes.append([tuple(view.shape[2:]) for view in views])
        return plain(self, views, *more)

    monkeypatch.setattr(dino.Dino, "loss", loss)
    spec = params(DINO, backbone=backbone, epochs=1, batch_size=48, snapshots=2, local_crops=2, local_crop_size=4)
    task = make_task("a", spec, dataset=dataset)
    summary = train_teacher(task)
    assert sizes == [[(8, 8), (8, 8), (4, 4), (4, 4)]] * 2
    assert summary["ema_residual"] < 1e-5
    module, manifest = load_teacher(task.out)  # built for one size again, from the same tensors
    assert module(torch.rand(2, 1, *manifest.image_size)).shape == (2, manifest.feature_dim)


@pytest.mark.parametrize("teacher", [BARLOW, SIMCLR], ids=["barlow_twins", "simclr"])
def test_the_loss_falls(make_task: MakeTask, dataset: Path, teacher: dict[str, Any]) -> None:
    task = make_task("a", params(teacher, epochs=20, lr=5e-3), dataset=dataset)
    train_teacher(task)
    losses = [value for _, value in json.loads((task.out / "history.json").read_text())["loss"]]
    assert sum(losses[-5:]) < 0.87 * sum(losses[:5])


def test_a_dino_student_learns_what_a_slow_teacher_says(make_task: MakeTask, dataset: Path) -> None:
    """With a teacher and a center that hardly move, the KL divergence between the two must fall."""
    slow = params(DINO, epochs=20, lr=5e-3, local_crops=0, momentum=0.9999, center_momentum=0.9999, freeze_last_layer_epochs=0)
    task = make_task("a", slow, dataset=dataset)
    train_teacher(task)
    divergence = [value for _, value in json.loads((task.out / "history.json").read_text())["kl"]]
    assert sum(divergence[-5:]) < 0.6 * sum(divergence[3:8])


SINGLE = {"center_momentum": 0.99999, "teacher_temperature": 0.02, "lr": 0.01, "freeze_last_layer_epochs": 0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"teacher_temperature": 10.0}, ("uniform", "lower teacher.teacher_temperature")), (SINGLE, ("single", "center_momentum")), ({}, ())],
    ids=["uniform", "single", "neither"],
)
def test_a_collapse_of_dinos_outputs_is_pointed_out(
    make_task: MakeTask, dataset: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    events: list[dict[str, Any]] = []
    spec = {**DINO, "epochs": 12, **changes}
    train_teacher(make_task("a", params(spec), Reporter(sink=events.append), dataset=dataset))
    notes = [event["text"] for event in events if event["type"] == "note"]
    assert len(notes) == (1 if words else 0)
    assert all(word in notes[0] for word in words)
    with pytest.raises(DdcoreError, match="floor of 100") as caught:
        train_teacher(make_task("b", params(spec, min_knn_accuracy=100.0), dataset=dataset))
    assert all(word in f"{caught.value.detail} {caught.value.hint}" for word in words)


def test_without_labels_there_is_no_accuracy(make_task: MakeTask, dataset: Path, tmp_path: Path) -> None:
    data = load_dataset(dataset)
    Images(data.images[:20], None, ()).save(tmp_path / "dataset.safetensors")
    task = make_task("a", params(SIMCLR, batch_size=256), dataset=tmp_path)  # more than there are images: one batch of all
    summary = train_teacher(task)
    assert summary["knn_accuracy"] is None
    assert "knn" not in json.loads((task.out / "history.json").read_text())
    assert load_file(task.out / "trajectory.safetensors")["step"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"min_knn_accuracy": 100.0}, "teacher_collapsed", ("k-NN accuracy", "floor of 100.0 %")),
        ({"lr": 1e30}, "diverged", ("not finite at step",)),
    ],
)
def test_failures_carry_figures(make_task: MakeTask, dataset: Path, changes: dict[str, Any], code: str, words: tuple[str, ...]) -> None:
    task = make_task("a", params(SIMCLR, **changes), dataset=dataset)
    with pytest.raises(DdcoreError) as caught:
        train_teacher(task)
    assert caught.value.code == code
    assert caught.value.hint
    assert all(word in caught.value.detail for word in words)
    assert not (task.out / "teacher.safetensors").exists()


def test_features_that_do_not_vary_are_a_collapse(make_task: MakeTask, tmp_path: Path) -> None:
    Images(torch.full((32, 1, 8, 8), 100, dtype=torch.uint8), None, ()).save(tmp_path / "dataset.safetensors")
    teacher = {**DINO, "augment": {**TINY["augment"], "noise": 0.0}}
    with pytest.raises(DdcoreError, match="nearly the same features") as caught:
        train_teacher(make_task("a", params(teacher), dataset=tmp_path))
    assert caught.value.code == "teacher_collapsed"


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 2.0, 10) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert learning_rate(0, 1, 2.0, 10) == 2.0
    assert max(learning_rate(step, 10, 2.0, 50) for step in range(10)) == 2.0  # a warm-up longer than the run still peaks
