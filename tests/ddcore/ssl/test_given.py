"""Given teachers: checkpoints that fit and that do not, weights that can and cannot be fetched."""

import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from ddcore.data.images import load_dataset, mean_std
from ddcore.errors import DdcoreError, SpecError
from ddcore.networks.backbones import build_backbone
from ddcore.specs import BackboneSpec
from ddcore.ssl.teacher import load_teacher
from ddcore.ssl.train import train_teacher
from ddcore.task import Resources, Task

MakeTask = Callable[..., Task]
BACKBONE = {"name": "convnet", "width": 4, "depth": 2}


def given(**fields: Any) -> dict[str, Any]:
    return {"teacher": {"ssl": "given", "backbone": BACKBONE, **fields}, "seed": 0}


def checkpoint(path: Path, metadata: dict[str, str] | None = None, **changes: torch.Tensor | None) -> Resources:
    state: dict[str, Any] = {**build_backbone(BackboneSpec(**BACKBONE), 1, (8, 8)).state_dict(), **changes}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path, metadata=metadata)
    return Resources(checkpoints={"art_1": path})


@pytest.mark.parametrize("metadata", [None, {"normalisation": '{"mean": [0.25], "std": [0.5]}'}])
def test_a_checkpoint_is_measured_and_kept(make_task: MakeTask, dataset: Path, tmp_path: Path, metadata: dict[str, str] | None) -> None:
    resources = checkpoint(tmp_path / "c.safetensors", metadata)
    task = make_task("a", given(checkpoint="art_1"), resources=resources, dataset=dataset)
    summary = train_teacher(task)
    module, manifest = load_teacher(task.out)
    expected = load_file(tmp_path / "c.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())
    own = mean_std(load_dataset(dataset).images)
    assert (manifest.mean, manifest.std) == (([0.25], [0.5]) if metadata else own)
    assert manifest.ssl == "given"
    assert manifest.knn_accuracy == summary["knn_accuracy"]
    assert not (task.out / "trajectory.safetensors").exists()
    own_file = Resources(checkpoints={"art_1": task.out / "teacher.safetensors"})
    again = make_task("b", given(checkpoint="art_1"), resources=own_file, dataset=dataset)
    assert train_teacher(again) == summary  # a teacher's own file is a checkpoint that carries its normalisation


def test_what_does_not_fit_is_listed(make_task: MakeTask, dataset: Path, tmp_path: Path) -> None:
    changes = {"blocks.0.bias": None, "linear.weight": torch.ones(2), "blocks.4.weight": torch.ones(4, 3, 3, 3)}
    resources = checkpoint(tmp_path / "c.safetensors", **changes)
    with pytest.raises(DdcoreError) as caught:
        train_teacher(make_task("a", given(checkpoint="art_1"), resources=resources, dataset=dataset))
    assert caught.value.code == "bad_checkpoint"
    for words in ("1 missing (blocks.0.bias)", "1 unexpected (linear.weight)", "blocks.4.weight [4, 3, 3, 3] instead of [4, 4, 3, 3]"):
        assert words in caught.value.detail


@pytest.mark.parametrize(
    ("metadata", "changes", "word"),
    [
        (None, {"blocks.0.bias": torch.full((4,), float("nan"))}, "not finite: blocks.0.bias"),
        ({"normalisation": "[]"}, {}, "cannot be read"),
        ({"normalisation": '{"mean": [0, 0, 0], "std": [1, 1, 1]}'}, {}, "3 channels"),
        ({"normalisation": '{"mean": [0], "std": [0]}'}, {}, "normalises"),
    ],
)
def test_broken_checkpoints(make_task: MakeTask, dataset: Path, tmp_path: Path, metadata: Any, changes: Any, word: str) -> None:
    resources = checkpoint(tmp_path / "c.safetensors", metadata, **changes)
    with pytest.raises(DdcoreError, match=word) as caught:
        train_teacher(make_task("a", given(checkpoint="art_1"), resources=resources, dataset=dataset))
    assert caught.value.code == "bad_checkpoint"


def test_a_pickle_is_not_opened(make_task: MakeTask, dataset: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "c.pt")
    resources = Resources(checkpoints={"art_1": tmp_path / "c.pt"})
    with pytest.raises(DdcoreError, match="safetensors") as caught:
        train_teacher(make_task("a", given(checkpoint="art_1"), resources=resources, dataset=dataset))
    assert caught.value.code == "bad_checkpoint"
    with pytest.raises(DdcoreError, match="not at hand"):
        train_teacher(make_task("b", given(checkpoint="art_2"), resources=resources, dataset=dataset))


def test_timm_weights_by_name(make_task: MakeTask, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create, asked = timm.create_model, []

    def offline(name: str, pretrained: bool = False, cache_dir: str | None = None, **options: Any) -> Any:
        asked.append((name, pretrained, cache_dir))
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    task = make_task("a", given(source="timm", backbone={"name": "resnet10t"}), resources=Resources(downloads=tmp_path), dataset=dataset)
    train_teacher(task)
    assert asked[-1] == ("resnet10t", True, str(tmp_path / "timm"))
    module, manifest = load_teacher(task.out)
    assert (manifest.library, manifest.feature_dim, manifest.in_channels) == ("timm", 512, 1)
    assert manifest.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    kept = load_file(task.out / "teacher.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in module.state_dict().items())

    def unplugged(name: str, **options: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(timm, "create_model", unplugged)
    with pytest.raises(DdcoreError, match=r"resnet10t could not be fetched.*no route") as caught:
        train_teacher(make_task("b", given(source="timm", backbone={"name": "resnet10t"}), dataset=dataset))
    assert caught.value.code == "download_failed"


def test_a_timm_name_without_weights_is_an_invalid_spec(make_task: MakeTask, dataset: Path) -> None:
    name = next(n for n in timm.list_models() if not timm.is_model_pretrained(n))
    with pytest.raises(SpecError, match="no weights"):
        train_teacher(make_task("a", given(source="timm", backbone={"name": name}), dataset=dataset))


def test_torchvision_weights_by_name(make_task: MakeTask, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that lie in the download folder are used; their classifier is left out, and grey images are shown in three channels."""
    name = "mobilenet_v3_small"
    weights = torchvision.models.get_model_weights(name).DEFAULT
    whole = torchvision.models.get_model(name, weights=None)
    (tmp_path / "torchvision").mkdir()
    torch.save(whole.state_dict(), tmp_path / "torchvision" / weights.url.rsplit("/", 1)[1])
    task = make_task("a", given(source="torchvision", backbone={"name": name}), resources=Resources(downloads=tmp_path), dataset=dataset)
    train_teacher(task)
    module, manifest = load_teacher(task.out)
    assert (manifest.library, manifest.feature_dim) == ("torchvision", 1024)
    stem = "features.0.0.weight"
    assert torch.equal(module.state_dict()[f"model.{stem}"], whole.state_dict()[stem])

    def unplugged(self: Any, **options: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(type(weights), "get_state_dict", unplugged)
    with pytest.raises(DdcoreError) as caught:
        train_teacher(make_task("b", given(source="torchvision", backbone={"name": name}), dataset=dataset))
    assert caught.value.code == "download_failed"
