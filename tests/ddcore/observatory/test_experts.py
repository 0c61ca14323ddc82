"""Experts that share their start are told apart by their chance alone, over all parameters and over the encoder's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ddcore.data.images import Images
from ddcore.errors import DdcoreError
from ddcore.events import Reporter
from ddcore.ledger import Ledger
from ddcore.networks.flat import build_student
from ddcore.observatory.experts import observe_experts
from ddcore.specs import StudentSpec
from ddcore.task import Task

STUDENT = StudentSpec(width=4, depth=1)
FACTS = {"feature_dim": 3}
ENCODER = 4 * 9 + 4 + 4 + 4  # a convolution of one channel, its bias, and the norm's scale and shift


def task_of(root: Path, same_start: bool) -> Task:
    (root / "dataset").mkdir(parents=True)
    (root / "out").mkdir()
    draw = torch.Generator().manual_seed(0)
    Images((torch.rand(40, 1, 8, 8, generator=draw) * 255).byte(), None, ()).save(root / "dataset" / "dataset.safetensors")
    params = {"seed": 0, "student": STUDENT.model_dump(), "same_start": same_start}
    return Task(params, {"dataset": [root / "dataset"]}, root / "out", root, Reporter(), torch.device("cpu"))


def shards_of(root: Path, paths: torch.Tensor) -> list[Path]:
    """Two shards with the experts of `paths` [count, snapshots, P]."""
    folders = [root / "experts-0", root / "experts-1"]
    for folder, part in zip(folders, paths.split([2, len(paths) - 2]), strict=True):
        folder.mkdir()
        save_file({"trajectories": part.contiguous()}, folder / "experts.safetensors")
    return folders


def walks(count: int, parameters: int, same_start: bool = True) -> torch.Tensor:
    """Paths float32 [count, 4, parameters] that share a direction; the last layer scatters more than the rest."""
    draw = torch.Generator().manual_seed(1)
    start, common = torch.randn(2, parameters, generator=draw)
    own = 0.3 * torch.randn(count, parameters, generator=draw)
    own[:, ENCODER:] *= 3
    starts = start.expand(count, -1) if same_start else torch.randn(count, parameters, generator=draw)
    return (starts.unsqueeze(1) + torch.arange(4).view(1, 4, 1) * (common + own).unsqueeze(1)).contiguous()


def slow_ratio(paths: torch.Tensor) -> float:
    moved = (paths[:, -1] - paths[:, 0]).double()
    noise = moved.var(0, correction=1).sum()
    pairs = [moved[a] @ moved[b] for a in range(len(moved)) for b in range(len(moved)) if a != b]
    return float((noise / torch.stack(pairs).mean()).sqrt())


def seen(task: Task, shards: list[Path], rows: list[dict[str, Any]]) -> dict[str, Any]:
    return observe_experts(task, shards, FACTS, rows, Ledger(task.work, "experts", task.reporter))


@pytest.mark.usefixtures("blank_pictures")
def test_noise_of_experts_is_its_definition_over_all_parameters_and_over_the_encoder(tmp_path: Path) -> None:
    task = task_of(tmp_path, same_start=True)
    paths = walks(5, build_student(STUDENT, (1, 8, 8), 3).num_parameters)
    rows: list[dict[str, Any]] = []
    summary = seen(task, shards_of(tmp_path, paths), rows)
    assert summary["noise_to_signal_experts"] == pytest.approx(slow_ratio(paths), rel=1e-5)
    assert summary["noise_to_signal_experts_encoder"] == pytest.approx(slow_ratio(paths[..., :ENCODER]), rel=1e-5)
    assert summary["noise_to_signal_experts"] > 1.5 * summary["noise_to_signal_experts_encoder"]
    told = {(row["path"], row["step"]): row["value"] for row in rows if row["quantity"] == "runs_ratio"}
    assert told["experts", 3] == summary["noise_to_signal_experts"]
    assert told["experts' encoder", 0] is None
    drawn = json.loads((tmp_path / "out" / "expert_noise.json").read_text())
    assert drawn["experts"]["ratio"][-1] == summary["noise_to_signal_experts"]
    assert (tmp_path / "out" / "expert_noise.png").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_experts_of_many_starts_have_no_such_noise(tmp_path: Path) -> None:
    paths = walks(4, build_student(STUDENT, (1, 8, 8), 3).num_parameters, same_start=False)
    task, shards = task_of(tmp_path / "apart", same_start=False), shards_of(tmp_path, paths)
    assert "noise_to_signal_experts" not in seen(task, shards, [])
    with pytest.raises(DdcoreError, match=r"begin .* apart") as caught:
        seen(task_of(tmp_path / "said", same_start=True), shards, [])
    assert (caught.value.code, "same_start false" in caught.value.hint) == ("missing_input", True)


def test_experts_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DdcoreError, match=r"the experts have 17 parameters, but the student .* has") as caught:
        seen(task_of(tmp_path, same_start=True), shards_of(tmp_path, walks(4, 17)), [])
    assert caught.value.code == "missing_input"
