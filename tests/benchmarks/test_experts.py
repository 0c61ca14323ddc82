from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import experts
from benchmarks.roofline import Sizes
from benchmarks.settings import flat_convnet
from ddcore.data.images import Images
from ddcore.specs import ExpertsSpec

CPU = torch.device("cpu")
TINY = ["--depth=2", "--size=8", "--dims=8", "--batch=4", "--images=10", "--device=cpu", "--threads=1", "--repeats=2", "--parameters=1000"]


def test_both_steps_take_the_same_way() -> None:
    sizes = Sizes(4, 3, 8, 8, dims=6, depth=2, maps=8)
    random = torch.Generator().manual_seed(0)
    data = Images(torch.randint(256, (20, 3, 8, 8), generator=random, dtype=torch.uint8), None, ())
    targets = torch.randn(20, 6, generator=random)
    spec = ExpertsSpec(batch_size=4, lr=0.5, momentum=0.9, weight_decay=0.01)
    network = flat_convnet(sizes, CPU, torch.float32)
    plain, parameters = experts.plain_step(network, spec, data, targets, CPU)
    ours, theta = experts.our_step(network, spec, data, targets, CPU)
    start = theta.clone()
    for rows in torch.randperm(20, generator=random).split(4):
        plain(rows)
        ours(rows)
    ended = torch.cat([one.detach().flatten() for one in parameters])
    assert float((theta - ended).norm() / (ended - start).norm()) < 1e-4


def test_the_last_line_describes_the_last_student(last_line: Callable[[], dict[str, Any]]) -> None:
    experts.main([*TINY, "--width", "4", "8"])
    found = last_line()
    assert {"width": 8, "batch": 4, "device": "cpu", "threads": 1, "n_pairs": 2}.items() <= found.items()
    assert [row["width"] for row in found["rows"]] == [4, 8]
    assert found["time_ratio"] == found["rows"][-1]["time_ratio"]
    assert found["images_per_second"] == pytest.approx(4 * found["steps_per_second"], rel=1e-2)
    assert [row["read"] for row in found["reads"]] == ["mapped", "bf16 differences"]
    assert all(row["parameters"] == 1000 and row["file_bytes"] >= 21 * 4000 for row in found["reads"])
    assert found["read_ms"] == found["reads"][0]["ms"]
