"""Every exported format is read back with its own library and compared with the set; equal sets give equal bytes."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from ddcore.events import Reporter
from ddcore.export import export_set, rounding
from ddcore.observatory.mosaic import mosaic
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task

CPU = torch.device("cpu")


def make_set(channels: int) -> SyntheticSet:
    draw = torch.Generator().manual_seed(0)
    info = {"mean": [0.5] * channels, "std": [0.2] * channels, "method": {"name": "mkdt"}, "image_range": [-0.2, 1.2]}
    images = torch.rand(6, channels, 8, 10, generator=draw) * 1.4 - 0.2
    return SyntheticSet(images, torch.randn(6, 5, generator=draw), torch.tensor(0.025), torch.arange(6) * 7, info)


def run_export(root: Path, data: SyntheticSet) -> tuple[Path, dict[str, object]]:
    for name in ("set", "out", "work"):
        (root / name).mkdir(parents=True)
    data.save(root / "set" / "synthetic.safetensors")
    return root / "out", export_set(Task({}, {"set": [root / "set"]}, root / "out", root / "work", Reporter(), CPU))


def levels(data: SyntheticSet) -> np.ndarray:
    return np.rint(np.clip(data.images.numpy(), 0, 1) * 255).transpose(0, 2, 3, 1).astype(np.uint8)


def pixels_of(png: bytes) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def test_pt_is_plain_tensors_and_exact(tmp_path: Path) -> None:
    data = make_set(3)
    out, _ = run_export(tmp_path, data)
    found = torch.load(out / "synthetic.pt", weights_only=True)
    assert type(found) is dict
    for name in ("images", "targets", "learned_lr", "indices"):
        assert torch.equal(found[name], getattr(data, name))
    torch.testing.assert_close((found["images"] - found["mean"].view(-1, 1, 1)) / found["std"].view(-1, 1, 1), data.normalised())


@pytest.mark.parametrize("channels", [1, 3])
def test_png_zip_holds_the_quantised_images(tmp_path: Path, channels: int) -> None:
    data = make_set(channels)
    out, _ = run_export(tmp_path, data)
    with zipfile.ZipFile(out / "synthetic-png.zip") as archive:
        assert archive.namelist() == [*(f"0000{i}.png" for i in range(6)), "targets.npy", "meta.json"]
        found = np.stack([pixels_of(archive.read(f"0000{i}.png")) for i in range(6)])
        targets = np.load(io.BytesIO(archive.read("targets.npy")), allow_pickle=False)
        meta = json.loads(archive.read("meta.json"))
    np.testing.assert_array_equal(found, levels(data))
    np.testing.assert_array_equal(targets, data.targets.numpy())
    assert meta["learned_lr"] == float(data.learned_lr)
    assert "learned_lrs" not in meta
    assert meta["indices"] == data.indices.tolist()
    assert meta["mean"] == data.info["mean"]


@pytest.mark.parametrize("channels", [1, 3])
def test_parquet_has_images_targets_and_the_rate(tmp_path: Path, channels: int) -> None:
    data = make_set(channels)
    out, _ = run_export(tmp_path, data)
    table = pyarrow.parquet.read_table(out / "synthetic.parquet")
    rows = table.to_pylist()
    np.testing.assert_array_equal(np.stack([pixels_of(row["image"]["bytes"]) for row in rows]), levels(data))
    np.testing.assert_array_equal(np.array([row["target"] for row in rows], np.float32), data.targets.numpy())
    assert [row["index"] for row in rows] == data.indices.tolist()
    facts = table.schema.metadata
    assert float(facts[b"learned_lr"]) == float(data.learned_lr)
    assert json.loads(facts[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}
    assert json.loads(facts[b"potstill"])["method"] == {"name": "mkdt"}


def test_mtt_zip_has_the_reference_names_and_normalised_images(tmp_path: Path) -> None:
    data = make_set(3)
    out, _ = run_export(tmp_path, data)
    with zipfile.ZipFile(out / "synthetic-mtt.zip") as archive:
        found = {name: torch.load(io.BytesIO(archive.read(f"{name}_best.pt")), weights_only=True) for name in ("images", "labels", "lr")}
    torch.testing.assert_close(found["images"], data.normalised())
    assert torch.equal(found["labels"], data.targets)
    assert torch.equal(found["lr"], data.learned_lr)


def test_layers_rates_are_kept_whole_or_stated_with_their_mean(tmp_path: Path) -> None:
    data = replace(make_set(1), learned_lr=torch.tensor([0.5, 0.02, 0.1]))
    out, _ = run_export(tmp_path, data)
    assert torch.equal(torch.load(out / "synthetic.pt", weights_only=True)["learned_lr"], data.learned_lr)
    with zipfile.ZipFile(out / "synthetic-mtt.zip") as archive:
        assert torch.equal(torch.load(io.BytesIO(archive.read("lr_best.pt")), weights_only=True), data.learned_lr)
        meta = json.loads(archive.read("meta.json"))
    assert meta["learned_lr"] == pytest.approx(0.1)
    assert meta["learned_lrs"] == data.learned_lr.tolist()
    facts = pyarrow.parquet.read_table(out / "synthetic.parquet").schema.metadata
    assert float(facts[b"learned_lr"]) == meta["learned_lr"]
    assert json.loads(facts[b"potstill"])["learned_lrs"] == meta["learned_lrs"]


def test_rounding_is_measured() -> None:
    data = make_set(1)
    pixels = torch.full_like(data.images, 10 / 255)
    pixels[0, 0, 0, 0], pixels[0, 0, 0, 1], pixels[0, 0, 0, 2] = -0.25, 1.5, 10.4 / 255
    found = rounding(SyntheticSet(pixels, data.targets, data.learned_lr, data.indices, data.info))
    assert found["share_clipped"] == pytest.approx(2 / pixels.numel())
    assert found["max_error"] == pytest.approx(0.5)
    assert found["mean_error"] == pytest.approx((0.25 + 0.5 + 0.4 / 255) / pixels.numel(), rel=1e-4)
    assert (found["lowest_pixel"], found["highest_pixel"]) == (-0.25, 1.5)


def test_exports_repeat_byte_for_byte_and_the_summary_names_them_all(tmp_path: Path) -> None:
    first, summary = run_export(tmp_path / "a", make_set(3))
    second, _ = run_export(tmp_path / "b", make_set(3))
    names = {path.name for path in first.iterdir()}
    assert names == {"synthetic.pt", "synthetic-png.zip", "synthetic.parquet", "synthetic-mtt.zip", "preview.png"}
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert summary["files"] == {name: (first / name).stat().st_size for name in names}


def test_mosaic_puts_images_row_by_row_with_gaps() -> None:
    images = torch.stack([torch.full((1, 2, 3), value) for value in (0.0, 0.2, 2.0)])
    found = mosaic(images, columns=2, side=6, gap=1)
    assert found.shape == (2 * 4 + 1, 2 * 6 + 1, 3)
    assert (found[:4, :6] == 0).all()
    assert (found[:4, 7:] == 51).all()
    assert (found[5:, :6] == 255).all()
    assert (found[4] == 255).all()
