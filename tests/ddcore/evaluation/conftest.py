"""A small labelled world for evaluations: two-class pictures, sets of them, and the folders that steps leave."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddcore.data.images import Images
from ddcore.events import Reporter
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task

NETWORK = {"name": "convnet", "depth": 1, "width": 8}
PRETRAIN = {"steps": 12, "batch_size": 16, "momentum": 0.0, "weight_decay": 0.0, "lr": None}
INFO = {"mean": [0.5], "std": [0.3]}


def stripes(n: int, seed: int, shape: tuple[int, int, int] = (1, 8, 8)) -> Images:
    """Noisy images with horizontal (class 0) or vertical (class 1) stripes; uint8."""
    draw = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    labels = torch.arange(n) % 2
    wave = torch.arange(max(height, width)) // 2 % 2
    pictures = torch.stack([wave[:height, None].expand(height, width), wave[None, :width].expand(height, width)])[labels].float()
    pixels = (0.5 + 0.25 * (pictures - 0.5)).unsqueeze(1).expand(-1, channels, -1, -1) + 0.2 * torch.randn(n, *shape, generator=draw)
    return Images((pixels.clamp(0, 1) * 255).round().to(torch.uint8), labels, ("across", "down"))


def make_set(seed: int, rate: float = 0.05, m: int = 12) -> SyntheticSet:
    images = stripes(m, seed)
    draw = torch.Generator().manual_seed(seed)
    pixels = images.images.float() / 255 + 0.1 * torch.randn(m, 1, 8, 8, generator=draw)
    return SyntheticSet(pixels, torch.randn(m, 4, generator=draw), torch.tensor(rate), torch.arange(m), INFO)


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., Task]:
    """A factory of evaluate (or tune) tasks on stripes; keyword arguments override parameters or, as `sets`, the arms' sets."""

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        return tmp_path / name

    def make(
        out: str = "out", sets: dict[str, SyntheticSet] | None = None, events: list[dict[str, Any]] | None = None, **changed: Any
    ) -> Task:
        stripes(160, 1).save(folder("train") / "dataset.safetensors")
        stripes(60, 2).save(folder("test") / "dataset.safetensors")
        sets = sets or {"synthetic": make_set(0), "random": make_set(1), "k_means": make_set(2)}
        for name, data in sets.items():
            data.save(folder(f"set-{out}-{name}") / "synthetic.safetensors")
        rates = {name: 0.02 for name in sets if name != "synthetic"}
        (folder("rates") / "rates.json").write_text(json.dumps({"rates": rates, "scores": {}}))
        params = {
            "arms": list(sets), "untrained": True, "rounding": True, "network": NETWORK, "seed": 3, "pretrain": PRETRAIN, "tasks": 1,
            "label_fractions": [0.05, 0.5], "label_draws": 2, "probe": "ridge", "knn": 5, "grid": [0.5, 1.0, 2.0],
        }  # fmt: skip
        inputs = {
            "sets": [folder(f"set-{out}-{name}") for name in sets],
            "rates": [folder("rates")],
            "dataset": [folder("train")],
            "downstream_train": [folder("train")],
            "downstream_test": [folder("test")],
        }
        heard: list[dict[str, Any]] = [] if events is None else events
        return Task(params | changed, inputs, folder(out), folder(f"work-{out}"), Reporter(sink=heard.append), torch.device("cpu"))

    return make
