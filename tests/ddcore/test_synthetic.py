"""A synthetic set keeps its numbers, its bytes are reproducible, and a damaged file is refused in words."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddcore.errors import DdcoreError
from ddcore.synthetic import SyntheticSet, load_synthetic


def make_set(m: int = 5, channels: int = 3) -> SyntheticSet:
    draw = torch.Generator().manual_seed(0)
    info = {"method": {"name": "mkdt"}, "mean": [0.5, 0.4, 0.3][:channels], "std": [0.2, 0.25, 0.5][:channels], "horizon": 40}
    images = torch.rand(m, channels, 8, 8, generator=draw) * 1.4 - 0.2
    return SyntheticSet(images, torch.randn(m, 7, generator=draw), torch.tensor(0.03), torch.arange(m) * 3, info)


def test_round_trip_is_exact_and_the_library_alone_reads_it(tmp_path: Path) -> None:
    made = make_set()
    made.save(tmp_path / "a.safetensors")
    back = load_synthetic(tmp_path / "a.safetensors")
    for name in ("images", "targets", "learned_lr", "indices"):
        torch.testing.assert_close(getattr(back, name), getattr(made, name), rtol=0, atol=0)
    assert back.info == made.info
    assert set(load_file(tmp_path / "a.safetensors")) == {"images", "targets", "learned_lr", "indices"}


def test_layers_rates_survive_and_sum_up_to_their_geometric_mean(tmp_path: Path) -> None:
    made = replace(make_set(), learned_lr=torch.tensor([0.5, 0.02, 0.1]))
    made.save(tmp_path / "a.safetensors")
    back = load_synthetic(tmp_path / "a.safetensors")
    assert torch.equal(back.learned_lr, made.learned_lr)
    assert back.rates == pytest.approx([0.5, 0.02, 0.1])
    assert back.rate == pytest.approx(0.1)
    one = make_set()
    assert (one.rates, one.rate) == (None, float(one.learned_lr))


def test_equal_sets_give_equal_bytes(tmp_path: Path) -> None:
    made = make_set()
    shuffled = dict(reversed(made.info.items()))
    made.save(tmp_path / "a")
    SyntheticSet(made.images.clone(), made.targets.clone(), made.learned_lr, made.indices, shuffled).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_normalised_uses_each_channels_own_numbers() -> None:
    made = make_set()
    expected = torch.stack(
        [(made.images[:, i] - m) / s for i, (m, s) in enumerate(zip(made.info["mean"], made.info["std"], strict=True))], 1
    )
    torch.testing.assert_close(made.normalised(), expected)


def test_quantised_clips_and_lands_on_256_levels() -> None:
    made = make_set()
    quantised = made.quantised().images
    levels = quantised * 255
    assert quantised.min() == 0
    assert quantised.max() == 1
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    inside = (made.images >= 0) & (made.images <= 1)
    assert (quantised - made.images)[inside].abs().max() <= 0.5 / 255 + 1e-6
    assert made.images.min() < 0  # the original is left as it was


def _write(path: Path, info: Any = None, **changed: torch.Tensor) -> None:
    made = make_set()
    tensors = {name: getattr(made, name) for name in ("images", "targets", "learned_lr", "indices")} | changed
    save_file(tensors, path, metadata={"potstill": json.dumps(made.info if info is None else info)})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"targets": torch.zeros(4, 7)}, "5 images, 4 targets"),
        ({"images": torch.zeros(5, 8, 8)}, "expected images [m, c, h, w]"),
        ({"images": torch.full((5, 3, 8, 8), float("nan"))}, "NaN"),
        ({"targets": torch.zeros(5, 7, dtype=torch.float64)}, "float32"),
        ({"learned_lr": torch.tensor([0.1, -0.2])}, "a layer's learned rate of -0.2"),
        ({"learned_lr": torch.ones(2, 2)}, "learned_lr [] or [layers]"),
        ({"learned_lr": torch.ones(0)}, "learned_lr [] or [layers]"),
        ({"info": {"mean": [0.5], "std": [1.0, 1.0, 1.0]}}, "'mean'"),
        ({"info": {"mean": [0.5, 0.5, 0.5], "std": [1.0, 0.0, 1.0]}}, "above zero"),
        ({"info": [1]}, "not a JSON object"),
    ],
)
def test_a_set_that_does_not_fit_together_is_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    _write(tmp_path / "a.safetensors", **changed)
    with pytest.raises(DdcoreError) as caught:
        load_synthetic(tmp_path / "a.safetensors")
    assert caught.value.code == "missing_input"
    assert words in caught.value.detail


def test_damage_absence_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    make_set().save(path)
    path.write_bytes(path.read_bytes()[:-20])
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    for name, words in (
        ("a.safetensors", "not a readable"),
        ("none.safetensors", "not there"),
        ("foreign.safetensors", "no potstill metadata"),
    ):
        with pytest.raises(DdcoreError, match=words) as caught:
            load_synthetic(tmp_path / name)
        assert caught.value.code == "missing_input"
