"""The folders a distillation leaves, made up: small, and with the shapes that real ones have."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ddcore.data.images import Images
from ddcore.events import Reporter
from ddcore.observatory.figures import draw_figures
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task

STUDENT = {"width": 4, "depth": 1}
PARAMETERS = 4 * 9 + 4 + 8 + 4 * 64 + 4  # of that student on 8x8 grey images, with targets of 4 dimensions
INNER = {"inner_steps": 6, "expert_epochs": 2, "max_start_epoch": 1, "batch_size": 20, "inner_momentum": 0.5}


def write_experts(folder: Path, count: int, snapshots: int, seed: int) -> torch.Tensor:
    """Random starts; from each, a common direction with shrinking steps, and a little noise."""
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(PARAMETERS, generator=torch.Generator().manual_seed(99))
    paths = torch.randn(count, 1, PARAMETERS, generator=draw) * 0.5 + torch.zeros(count, snapshots, 1)
    progress = 1 - 0.6 ** torch.arange(snapshots)
    own = torch.randn(count, 1, PARAMETERS, generator=draw) * 0.3
    paths = paths + progress.view(1, -1, 1) * (common + own) + 0.02 * torch.randn(count, snapshots, PARAMETERS, generator=draw)
    folder.mkdir(parents=True)
    save_file({"trajectories": paths}, folder / "experts.safetensors", metadata={"student": "{}"})
    losses = [[0.9 * 0.7**t * (1 + 0.03 * ((e + seed) % 5)) + 0.2 for t in range(snapshots - 1)] for e in range(count)]
    (folder / "history.json").write_text(json.dumps({"first": 0, "loss": losses}))
    return paths


def write_teacher(folder: Path, ssl: str, snapshots: int = 20) -> dict[str, torch.Tensor]:
    """A student on a bent path; for DINO also its moving average."""
    draw = torch.Generator().manual_seed(5)
    one, two = torch.randn(2, PARAMETERS, generator=draw)
    time = torch.linspace(0, 1, snapshots).unsqueeze(1)
    student = 2 * time.sqrt() * one + torch.sin(2.5 * time) * two + 0.05 * torch.randn(snapshots, PARAMETERS, generator=draw)
    tensors = {"student": student}
    if ssl == "dino":
        teacher = [student[0]]
        for row in student[1:]:
            teacher.append(0.75 * teacher[-1] + 0.25 * row)
        tensors["teacher"] = torch.stack(teacher)
    folder.mkdir(parents=True)
    save_file({**tensors, "step": torch.arange(snapshots) * 50}, folder / "trajectory.safetensors")
    noise = torch.rand(200, generator=draw).tolist()
    (folder / "history.json").write_text(json.dumps({"loss": [[5 * i, 3 + 3 * math.exp(-i / 40) + 0.3 * noise[i]] for i in range(200)]}))
    (folder / "teacher.json").write_text(json.dumps({"ssl": ssl}))
    return tensors


def write_set(folder: Path, real: Images, matched: bool) -> SyntheticSet:
    draw = torch.Generator().manual_seed(7)
    indices = torch.randperm(len(real.images), generator=draw)[:50]
    images = real.images[indices].float() / 255
    if matched:
        images = images + 0.08 * torch.randn(images.shape, generator=draw)
        curve = [[10 * (i + 1), 0.5 + 0.5 * math.exp(-i / 60) + 0.05 * float(torch.randn((), generator=draw))] for i in range(250)]
        folder.mkdir(parents=True)
        (folder / "history.json").write_text(json.dumps({"matching_loss": curve, "learned_lr": curve}))
    else:
        folder.mkdir(parents=True)
    info = {"method": {"name": "mkdt", **INNER} if matched else {"name": "random"}, "mean": [0.3], "std": [0.3]}
    made = SyntheticSet(images, torch.randn(50, 4, generator=draw), torch.tensor(0.1), indices, info)
    made.save(folder / "synthetic.safetensors")
    return made


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Task]:
    """A factory of figures tasks: `ssl` of the teacher, experts in each shard, and whether the set was matched or selected."""

    def make(ssl: str = "dino", shards: tuple[int, ...] = (4, 3), matched: bool = True) -> Task:
        root = tmp_path_factory.mktemp("distillation")
        draw = torch.Generator().manual_seed(0)
        real = Images((torch.rand(120, 1, 8, 8, generator=draw) * 255).byte(), None, ())
        (root / "dataset").mkdir()
        real.save(root / "dataset" / "dataset.safetensors")
        for number, count in enumerate(shards):
            write_experts(root / f"experts-{number}", count, 5, number)
        if ssl == "given":
            (root / "teacher").mkdir()
            (root / "teacher" / "teacher.json").write_text(json.dumps({"ssl": "given"}))
        else:
            write_teacher(root / "teacher", ssl)
        write_set(root / "set", real, matched)
        for folder in ("out", "work", "targets"):
            (root / folder).mkdir()
        save_file({"targets": torch.randn(120, 4, generator=draw)}, root / "targets" / "targets.safetensors")
        inputs = {role: [root / role] for role in ("dataset", "teacher", "targets", "set")}
        inputs["experts"] = [root / f"experts-{number}" for number in range(len(shards))]
        return Task({"student": STUDENT}, inputs, root / "out", root / "work", Reporter(), torch.device("cpu"))

    return make


@pytest.fixture(scope="session")
def drawn(recorded: Callable[..., Task]) -> tuple[Task, dict[str, Any]]:
    """A task whose figures were drawn, and its summary: drawing takes a second or two, so tests that only look share it."""
    task = recorded()
    return task, draw_figures(task)
