"""The scatter of a run's gradients is its definition, and measuring it changes nothing of the run."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddcore.data.images import load_dataset
from ddcore.errors import Stopped
from ddcore.events import Event, Reporter
from ddcore.specs import DinoSpec, SimCLRSpec
from ddcore.ssl.gradient_noise import gradient_noise
from ddcore.ssl.train import build_objective, train_teacher
from ddcore.task import Task

MakeTask = Callable[..., Task]

# Batch norm in the backbone or the projector, and DINO's centre: all that a pass through the networks leaves behind.
RESNET: dict[str, Any] = {
    "backbone": {"name": "resnet18", "width": 4},
    "epochs": 4,
    "batch_size": 32,
    "warmup_epochs": 1,
    "snapshots": 4,
    "augment": {"flip": False, "jitter": 0.0, "grayscale": 0.0},
}
DINO = {"ssl": "dino", "out_dim": 16, "hidden_dim": 16, "bottleneck_dim": 8, "momentum": 0.9, "local_crops": 1, **RESNET}
SIMCLR = {"ssl": "simclr", "projector_dim": 16, **RESNET, "backbone": {"name": "convnet", "width": 8, "depth": 2}}


def params(teacher: dict[str, Any], batches: int) -> dict[str, Any]:
    return {"teacher": {**teacher, "gradient_batches": batches}, "seed": 0}


def files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("teacher.safetensors", "trajectory.safetensors")]


@pytest.mark.parametrize("teacher", [DINO, SIMCLR], ids=["dino", "simclr"])
def test_a_run_is_the_same_bit_for_bit_with_it_and_without(make_task: MakeTask, dataset: Path, teacher: dict[str, Any]) -> None:
    histories, states = [], []
    for batches in (0, 8):
        task = make_task(f"{batches}", params(teacher, batches), dataset=dataset)
        train_teacher(task)
        states.append(files(task.out))
        histories.append(json.loads((task.out / "history.json").read_text()))
    assert states[0] == states[1]
    found = histories[1].pop("gradient_noise")
    assert histories[0] == histories[1]
    steps = [step for step, _ in found]
    assert steps[:2] == [0, 2]  # of 12 steps, evenly spaced; where gradients share nothing there is no point
    assert set(steps) <= {0, 2, 5, 7, 10, 12}
    assert all(0 < ratio < math.inf for _, ratio in found)
    assert len({ratio for _, ratio in found}) == len(found)


def test_a_run_stopped_while_it_measures_goes_on_as_if_it_had_not_been(make_task: MakeTask, dataset: Path) -> None:
    whole = make_task("whole", params(SIMCLR, 3), dataset=dataset)
    train_teacher(whole)
    seen: list[Event] = []

    def stop() -> bool:
        return bool(seen) and seen[-1]["note"] == "gradient 2 of 3" and seen[-1]["done"] == 5

    clock = iter(range(10**6))  # no event is too soon
    reporter = Reporter(lambda event: seen.append(event) if event["type"] == "progress" else None, stop, lambda: float(next(clock)))
    with pytest.raises(Stopped):
        train_teacher(make_task("parts", params(SIMCLR, 3), reporter, dataset=dataset))
    again = make_task("parts", params(SIMCLR, 3), dataset=dataset)
    train_teacher(again)
    assert files(again.out) == files(whole.out)
    assert json.loads((again.out / "history.json").read_text()) == json.loads((whole.out / "history.json").read_text())


@pytest.mark.parametrize("centred", [True, False])
def test_it_is_the_scatter_of_each_batchs_own_gradient(dataset: Path, centred: bool) -> None:
    images = load_dataset(dataset).images.float() / 255
    spec = DinoSpec(**{**DINO, "local_crops": 0, "koleo": 0.1}) if centred else SimCLRSpec(**SIMCLR)
    objective = build_objective(spec, (1, 8, 8), 0, torch.device("cpu"))
    if centred:
        objective.buffers["center"].normal_(generator=torch.Generator().manual_seed(0))
    batches = [[images[16 * b : 16 * b + 16], images[16 * b : 16 * b + 16].flip(3)] for b in range(6)]
    before = copy.deepcopy(objective)
    off = torch.autocast("cpu", enabled=False)
    found = gradient_noise(objective, lambda number: (batches[number], None), 6, 0.0, off)
    for name, module in objective.modules.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, before.modules[name].state_dict()[key]), key
        assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(objective.buffers[name], before.buffers[name]) for name in objective.buffers)
    rows = []
    for views in batches:
        own = copy.deepcopy(before)
        own.loss(views, 0.0)[0].backward()
        rows.append(torch.cat([p.grad.flatten() for p in own.backbone.parameters() if p.grad is not None]).double())
    gradients = torch.stack(rows)
    noise = gradients.var(0, correction=1).sum()
    products = gradients @ gradients.T
    signal = (products.sum() - products.trace()) / 30
    assert found == pytest.approx(float((noise / signal).sqrt()), rel=1e-5)


def test_one_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        DinoSpec(gradient_batches=1)
