from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import teacher
from ddcore.networks.backbones import build_backbone
from ddcore.specs import BackboneSpec

TINY = ["--backbone=convnet", "--size=8", "--batch=4", "--images=8", "--device=cpu", "--threads=1", "--repeats=2"]


def test_the_last_line_describes_the_default(last_line: Callable[[], dict[str, Any]]) -> None:
    teacher.main(TINY)
    found = last_line()
    wanted = {"backbone": "convnet", "batch": 4, "device": "cpu", "channels_last": True, "amp": False, "compile": False, "n_pairs": 2}
    assert wanted.items() <= found.items()
    assert found["rows"][0].items() <= found.items()
    assert [(row["channels_last"], row["amp"]) for row in found["rows"]] == [(True, False), (True, True)]
    assert found["images_per_second"] > 0


def test_autocast_is_what_the_row_says(tmp_path: Path) -> None:
    options = teacher._options(TINY)
    for way in teacher._ways(torch.device("cpu"), compiled=False):
        run = teacher.run_of(options, way, torch.device("cpu"), tmp_path)
        assert run.amp._enabled == way["amp"]


def test_the_plain_side_sees_the_default_layout() -> None:
    backbone = build_backbone(BackboneSpec(name="convnet", width=8, depth=2), 3, (8, 8))
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen: list[torch.Tensor] = []
    first = next(module for module in backbone.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, given: seen.extend(given))
    images = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    backbone(images)
    teacher.in_default_layout(backbone)
    backbone(images)
    assert [one.is_contiguous() for one in seen] == [False, True]
    assert first.weight.is_contiguous()
