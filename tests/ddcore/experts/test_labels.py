"""Supervised experts, to be observed beside the others: what they regress, and what is refused."""

import json

import pytest
import torch

from ddcore.checks import DatasetFacts
from ddcore.data.builtins import facts
from ddcore.data.images import Images
from ddcore.errors import DdcoreError, SpecError
from ddcore.events import Reporter
from ddcore.experts.train import targets_of
from ddcore.plan import plan_observe
from ddcore.run import run_plan
from ddcore.specs import ObserveSpec
from ddcore.task import Resources, Task

SMALL = {
    "experts": 3, "epochs": 2, "path": "labels", "student": {"depth": 2, "width": 4}, "training": {"batch_size": 256, "lr": 0.1},
    "teacher": {"ssl": "dino", "backbone": {"name": "convnet", "width": 8, "depth": 2}, "epochs": 1, "snapshots": 3, "out_dim": 16,
                "hidden_dim": 16, "bottleneck_dim": 8},
}  # fmt: skip


def task_of(tmp_path, path):
    return Task({"path": path}, {}, tmp_path, tmp_path, Reporter(), torch.device("cpu"))


def test_labels_are_one_standardised_dimension_a_class(tmp_path):
    labels = torch.tensor([0, 2, 2, 0, 2])
    found = targets_of(task_of(tmp_path, "labels"), Images(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), labels, ("a", "b", "c")))
    assert found.shape == (5, 3)
    assert torch.allclose(found.mean(0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(found[:, [0, 2]].std(0, correction=0), torch.ones(2))
    assert (found[:, 1] == 0).all()  # a class without images
    assert (found[:, 2] > 0).tolist() == [False, True, True, False, True]


def test_images_without_labels_have_none_to_follow(tmp_path):
    with pytest.raises(DdcoreError, match="has none"):
        targets_of(task_of(tmp_path, "labels"), Images(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), None, ()))
    bare = DatasetFacts("bare", {"archive": "0" * 64}, 100, (1, 8, 8), None)
    with pytest.raises(SpecError) as refused:
        plan_observe(ObserveSpec(**SMALL), bare)
    assert [(problem.loc, problem.given) for problem in refused.value.problems] == [(("path",), "labels")]
    plan_observe(ObserveSpec(**SMALL | {"experts": 0}), bare)  # where nothing follows them, none are needed


@pytest.mark.usefixtures("blank_pictures")
def test_supervised_experts_are_observed_like_others(tmp_path):
    plan = plan_observe(ObserveSpec(**SMALL), facts("digits-train"))
    folders = run_plan(plan, tmp_path, torch.device("cpu"), Resources(), lambda step: Reporter(), lambda *done: None)
    found = json.loads((folders["observe"] / "observations.json").read_text())
    assert found["facts"]["noise_to_signal_experts"] > 0
    layers = {row["layer"] for row in found["rows"] if row["quantity"] == "layer_displacement" and row["path"] == "expert 0"}
    assert "linear" in layers
