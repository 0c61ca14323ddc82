"""Each snapshot's figures are those of the network with its parameters, on images drawn once."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

from ddcore.data.images import Images, mean_std, normalise
from ddcore.errors import DdcoreError
from ddcore.networks.backbones import build_backbone
from ddcore.observatory.snapshots import linear_cka, per_snapshot
from ddcore.specs import BackboneSpec
from ddcore.ssl.measure import effective_rank, knn_accuracy
from ddcore.ssl.trajectory import Recorder, Storage, flat
from ddcore.task import generator

CONVNET, RESNET = BackboneSpec(name="convnet", width=8, depth=2), BackboneSpec(name="resnet18", width=4)


def digits(count: int = 300, labelled: bool = True) -> Images:
    """In order of class, as many uploads are."""
    bunch = load_digits()
    order = torch.from_numpy(bunch.target[:count]).sort(stable=True).indices
    images = torch.from_numpy(bunch.images[:count] * (255 / 16)).round().to(torch.uint8).unsqueeze(1)[order]
    return Images(images, torch.from_numpy(bunch.target[:count])[order].long() if labelled else None, tuple("0123456789"))


def networks(backbone: BackboneSpec, count: int) -> list[nn.Module]:
    torch.manual_seed(3)
    return [build_backbone(backbone, 1, (8, 8)) for _ in range(count)]


def record(folder: Path, **paths: list[nn.Module]) -> Path:
    count = len(next(iter(paths.values())))
    tensors = {name: torch.stack([flat(module) for module in modules]) for name, modules in paths.items()}
    save_file({**tensors, "step": torch.arange(count) * 5}, folder / "trajectory.safetensors")
    return folder


@pytest.mark.parametrize("backbone", [CONVNET, RESNET])
def test_figures_are_those_of_the_rebuilt_networks(tmp_path: Path, backbone: BackboneSpec) -> None:
    data, modules = digits(), networks(backbone, 5)
    rows = per_snapshot(record(tmp_path, student=modules[:3], teacher=[modules[0], *modules[3:]]), data, backbone, sample=200)
    assert [(row["network"], row["step"]) for row in rows] == [(name, step) for name in ("student", "teacher") for step in (0, 5, 10)]
    chosen = torch.randperm(300, generator=generator(0, "snapshots"))[:200]
    inputs = normalise(data.images[chosen], *mean_std(data.images))
    with torch.no_grad():  # all 200 are one batch, so batch statistics are the sample's
        features = [module.train()(inputs) for module in modules]
    assert data.labels is not None
    order = [features[i] for i in (0, 1, 2, 0, 3, 4)]
    for row, own, last in zip(rows, order, [features[2]] * 3 + [features[4]] * 3, strict=True):
        assert row["knn"] == knn_accuracy(own, data.labels[chosen])
        assert row["rank"] == pytest.approx(effective_rank(own), rel=1e-5)
        assert row["cka_to_last"] == pytest.approx(linear_cka(own, last), rel=1e-5)
    assert rows[2]["cka_to_last"] == pytest.approx(1.0)
    assert 0 < rows[0]["cka_to_last"] < 0.999
    assert rows[0]["knn"] > 30


def test_cka_is_its_definition_and_blind_to_rotation_scale_and_shift() -> None:
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 6, generator=draw).double(), torch.randn(40, 50, generator=draw).double()
    y[:, :6] += x
    cx, cy = x - x.mean(0), y - y.mean(0)
    expected = (cy.T @ cx).square().sum() / ((cx.T @ cx).norm() * (cy.T @ cy).norm())
    assert linear_cka(x, y) == pytest.approx(float(expected), rel=1e-10)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=draw).double()).Q
    assert linear_cka(x, 3 * x @ turn + 7) == pytest.approx(1.0, rel=1e-10)
    assert linear_cka(x, torch.ones(40, 3)) == 0.0


def test_statistics_are_of_random_batches_whatever_the_order_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches instead of one change a batch-normalised encoder's figures a little, not much; sorted ones would much."""
    data, folder = digits(), record(tmp_path, student=networks(RESNET, 2))
    whole = per_snapshot(folder, data, RESNET)
    monkeypatch.setattr("ddcore.observatory.snapshots.BATCH", 100)
    parts = per_snapshot(folder, data, RESNET)
    for one, other in zip(whole, parts, strict=True):
        assert one["rank"] != other["rank"]
        assert other["rank"] == pytest.approx(one["rank"], rel=0.1)
        assert abs(one["knn"] - other["knn"]) < 8


def test_unlabelled_images_have_no_accuracy_and_all_images_are_used_if_fewer(tmp_path: Path) -> None:
    rows = per_snapshot(record(tmp_path, student=networks(CONVNET, 2)), digits(60, labelled=False), CONVNET)
    assert [row["knn"] for row in rows] == [None, None]
    assert all(row["rank"] > 1 for row in rows)


def test_a_recording_of_differences_shows_what_a_whole_one_shows(tmp_path: Path) -> None:
    data, modules = digits(), networks(CONVNET, 2)
    student, end = (flat(module) for module in modules)
    found, storages = [], get_args(Storage)
    for storage in storages:
        (tmp_path / storage).mkdir()
        recorder = Recorder(tmp_path / storage, [0, 5, 10], storage)
        for step, part in ((0, 0.0), (5, 0.4), (10, 1.0)):
            recorder.keep(step, student + part * (end - student), student + part**2 * (end - student))
        recorder.gather(tmp_path / storage)
        found.append(per_snapshot(tmp_path / storage, data, CONVNET, sample=200))
    assert [(row["network"], row["step"]) for row in found[1]] == [(row["network"], row["step"]) for row in found[0]]
    for whole, short in zip(*found, strict=True):
        assert short["rank"] == pytest.approx(whole["rank"], rel=0.01)
        assert short["cka_to_last"] == pytest.approx(whole["cka_to_last"], abs=0.01)


def test_what_cannot_be_observed_says_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(DdcoreError, match="no recorded run") as missing:
        per_snapshot(tmp_path, digits(), CONVNET)
    assert missing.value.code == "missing_input"
    assert "barlow_twins" in missing.value.hint
    modules = networks(CONVNET, 2)
    record(tmp_path, student=modules)
    with pytest.raises(DdcoreError, match=r"have 696 parameters, but resnet18 on images of \[1, 8, 8\] has") as other:
        per_snapshot(tmp_path, digits(), RESNET)
    assert other.value.code == "bad_checkpoint"
    next(modules[1].parameters()).data.fill_(float("nan"))
    with pytest.raises(DdcoreError, match="student at step 5 are not finite"):
        per_snapshot(record(tmp_path, student=modules), digits(), CONVNET)
