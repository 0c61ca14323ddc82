"""Targets: standardised features of the teacher on the data set, and teachers that are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ddcore.data.images import Images, load_dataset, normalise
from ddcore.errors import DdcoreError
from ddcore.networks.backbones import build_backbone
from ddcore.specs import BackboneSpec
from ddcore.ssl.targets import compute_targets, standardise
from ddcore.ssl.teacher import Manifest, load_teacher, save_teacher
from ddcore.task import Task

MakeTask = Callable[..., Task]


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """The folder of a teacher step: an untrained ResNet, whose batch norm tells training and evaluation mode apart."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    spec = BackboneSpec(name="resnet18", width=4)
    module = build_backbone(spec, 1, (8, 8))
    manifest = Manifest(spec.model_dump(), 1, (8, 8), [0.3], [0.4], 32, "simclr", knn_accuracy=60.0, feature_rank=5.0)
    save_teacher(folder, module, manifest)
    return folder


def test_targets_are_the_standardised_features(make_task: MakeTask, dataset: Path, teacher: Path) -> None:
    task = make_task("a", {}, dataset=dataset, teacher=teacher)
    summary = compute_targets(task)
    found = load_file(task.out / "targets.safetensors")
    module, manifest = load_teacher(teacher)
    features = module.eval()(normalise(load_dataset(dataset).images, manifest.mean, manifest.std))
    torch.testing.assert_close(found["targets"] * found["std"] + found["mean"], features, rtol=1e-4, atol=1e-5)
    varies = (found["targets"] != 0).any(0)
    assert found["targets"].dtype == torch.float32
    assert found["targets"].mean(0).abs().max() < 1e-5
    torch.testing.assert_close(found["targets"].std(0, correction=0)[varies], torch.ones(int(varies.sum())), rtol=0, atol=1e-4)
    assert summary == {"num_images": 96, "target_dim": 32, "flat_dimensions": int((~varies).sum())}
    again = make_task("b", {}, dataset=dataset, teacher=teacher)
    compute_targets(again)
    assert (again.out / "targets.safetensors").read_bytes() == (task.out / "targets.safetensors").read_bytes()


def test_dimensions_without_variance_are_zero() -> None:
    features = torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 1e-9]])
    targets, mean, std = standardise(features)
    assert targets.tolist() == [[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    assert mean[:2].tolist() == [2.0, 5.0]
    assert std.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"min_knn_accuracy": 60.1}, "teacher_collapsed"),
        ({"knn_accuracy": 59.9, "min_knn_accuracy": 60.0}, "teacher_collapsed"),
        ({"feature_rank": 1.0}, "teacher_collapsed"),
        ({"backbone": {"name": "resnet18", "width": 5, "depth": 3}}, "bad_checkpoint"),
        ({"surprise": 1}, "missing_input"),
        ({"image_size": [16, 16]}, "missing_input"),
    ],
)
def test_teachers_that_must_not_be_used(make_task: MakeTask, dataset: Path, teacher: Path, change: dict[str, Any], code: str) -> None:
    manifest = json.loads((teacher / "teacher.json").read_text())
    (teacher / "teacher.json").write_text(json.dumps({**manifest, **change}))
    task = make_task("a", {}, dataset=dataset, teacher=teacher)
    with pytest.raises(DdcoreError) as caught:
        compute_targets(task)
    assert caught.value.code == code
    assert not list(task.out.iterdir())


def test_a_missing_or_damaged_teacher(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(DdcoreError, match="cannot be read"):
        load_teacher(tmp_path / "nowhere")
    weights = (teacher / "teacher.safetensors").read_bytes()
    (teacher / "teacher.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(DdcoreError) as caught:
        load_teacher(teacher)
    assert caught.value.code == "bad_checkpoint"


def test_images_of_another_kind(make_task: MakeTask, teacher: Path, tmp_path: Path) -> None:
    Images(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), None, ()).save(tmp_path / "dataset.safetensors")
    with pytest.raises(DdcoreError, match=r"\(1, 8, 8\), these are \(3, 8, 8\)"):
        compute_targets(make_task("a", {}, dataset=tmp_path, teacher=teacher))
