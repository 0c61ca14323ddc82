"""dino_tm and mkdt_plus from a plan to a set: every path, what they share with mkdt, and what they must not read."""

import json
import math

import pytest
import torch

from ddcore.data.builtins import facts
from ddcore.data.images import Images, load_dataset
from ddcore.events import Reporter
from ddcore.experts.store import Trajectories
from ddcore.matching.windows import Pace, Windows
from ddcore.methods import matched, run_method
from ddcore.plan import Plan, plan_distill
from ddcore.run import run_plan
from ddcore.specs import DistillSpec
from ddcore.synthetic import FILE, load_synthetic
from ddcore.task import Resources, Task

CPU, DIGITS = torch.device("cpu"), facts("digits-train")
MKDT = {"iterations": 4, "inner_steps": 3, "expert_epochs": 1, "max_start_epoch": 1, "lr_images": 1.0, "init": "random"}
PLAIN = {"continuous": False, "lag": False, "schedule": "constant"}
PARTS = {"gap": 0.3, "functional": 0.5, "displacement": 0.2, "normalise": "layers", "functional_images": 32}


def spec_of(method, experts=None):
    body = {
        "preset": "smoke",
        "num_images": 10,
        "teacher": {"epochs": 3, "batch_size": 256, "snapshots": 5},
        "student": {"depth": 1, "width": 4},
        "experts": {"num": 2, "per_shard": 2, "batch_size": 256, "lr": 0.02, **(experts or {})},
    }
    return DistillSpec.model_validate(body | {"method": MKDT | method})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folders of a plan's steps up to the set; the steps that plans share are run once."""
    root = tmp_path_factory.mktemp("runs")

    def go(method, experts=None):
        whole = plan_distill(spec_of(method, experts), DIGITS)
        plan = Plan({name: step for name, step in whole.steps.items() if step.kind not in ("figures", "export")})
        return plan, run_plan(plan, root, CPU, Resources(), lambda step: Reporter(), lambda *_: None)

    return go


def set_in(folder):
    found = load_synthetic(folder / FILE)
    return found.images, found.targets, found.learned_lr


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(set_in(one), set_in(other), strict=True))


@pytest.mark.parametrize("path", ["staged", "final", "teacher", "student"])
def test_every_path_leads_to_a_set_that_moved_and_tells_of_every_term(made, path):
    plan, folders = made({"name": "dino_tm", "path": path, "stages": 2} | PARTS)
    images, targets, rate = set_in(folders["distill"])
    begun = set_in(folders["init-random"])
    assert images.shape == (10, 1, 8, 8)
    assert all(torch.isfinite(part).all() for part in (images, targets, rate))
    assert not torch.equal(images, begun[0])
    curves = json.loads((folders["distill"] / "history.json").read_text())
    assert set(curves) == {"matching_loss", "learned_lr", "distance", "displacement", "gap", "functional"}
    experts = Trajectories([folders[name] for name in plan.steps["distill"].inputs["experts"]])
    assert (experts.num_experts, experts.num_snapshots) == (2, 3)
    assert load_synthetic(folders["distill"] / FILE).info["method"]["path"] == path


def test_every_path_is_another_of_the_same_network_from_the_same_beginning(made):
    rows = {}
    for path in ("staged", "final", "teacher", "student"):
        _, folders = made({"name": "dino_tm", "path": path, "stages": 2} | PARTS)
        rows[path] = [Trajectories([folders["experts-0"]]).row(1, snapshot) for snapshot in (0, 1, 2)]
    assert all(torch.equal(row[0], rows["final"][0]) for row in rows.values())
    ends = [row[-1] for row in rows.values()]
    assert all(not torch.allclose(ends[i], ends[j], atol=1e-4) for i in range(4) for j in range(i))


def test_without_their_parts_dino_tm_and_mkdt_plus_are_mkdt_bit_for_bit(made):
    _, theirs = made({"name": "mkdt"})
    for name in ("mkdt_plus", "dino_tm"):
        _, ours = made({"name": name} | PLAIN | ({"path": "final"} if name == "dino_tm" else {}))
        assert same(ours["distill"], theirs["distill"])


def test_dino_tm_on_the_final_path_is_mkdt_plus_with_all_its_parts(made):
    _, theirs = made({"name": "mkdt_plus"} | PARTS)
    _, ours = made({"name": "dino_tm", "path": "final"} | PARTS)
    assert same(ours["distill"], theirs["distill"])


@pytest.mark.parametrize("part", [{"continuous": True}, {"gap": 0.5}, {"functional": 0.5}, {"displacement": 0.5}, {"normalise": "layers"}])
def test_each_part_by_itself_changes_the_set(made, part):
    _, without = made({"name": "mkdt_plus"} | PLAIN)
    _, having = made({"name": "mkdt_plus"} | PLAIN | part)
    assert not same(having["distill"], without["distill"])


def again(plan, folders, tmp_path, name, **changes):
    """The step `distill` of a plan that was run, once more, by hand, with other inputs, or heard by a reporter."""
    step, out = plan.steps["distill"], tmp_path / name
    inputs = {role: [folders[one] for one in names] for role, names in step.inputs.items()} | changes.pop("inputs", {})
    for folder in (out, out / "work"):
        folder.mkdir()
    reporter = changes.pop("reporter", Reporter())
    run_method(Task(step.params | changes, inputs, out, out / "work", reporter, CPU))
    return out


@pytest.mark.parametrize("goal", ["teacher", "expert"])
def test_no_label_is_read(made, tmp_path, goal):
    """All terms on, the functional one too: with the labels turned around, and with none, the set is the same bit for bit."""
    plan, folders = made({"name": "mkdt_plus", "functional_goal": goal} | PARTS)
    data = load_dataset(folders[plan.steps["distill"].inputs["dataset"][0]] / "dataset.safetensors")
    for name, labels in (("turned", data.labels.flip(0)), ("without", None)):
        (tmp_path / f"data-{name}").mkdir()
        Images(data.images, labels, data.classes if labels is not None else ()).save(tmp_path / f"data-{name}" / "dataset.safetensors")
        out = again(plan, folders, tmp_path, name, inputs={"dataset": [tmp_path / f"data-{name}"]})
        assert same(out, folders["distill"])


@pytest.mark.parametrize(("lag", "batch"), [(True, 256), (True, 5000), (False, 256)])
def test_averaged_paths_are_read_at_the_pace_they_were_recorded_at(made, monkeypatch, tmp_path, lag, batch):
    seen = []

    class Spy(Windows):
        def __init__(self, experts, spec, pace=None):
            seen.append((pace, experts.num_snapshots))
            super().__init__(experts, spec, pace)

    plan, folders = made({"name": "mkdt_plus", "lag": lag}, {"ema": 0.7, "batch_size": batch})
    monkeypatch.setattr(matched, "Windows", Spy)
    again(plan, folders, tmp_path, "again")
    ((pace, snapshots),) = seen
    assert pace == (Pace(0.7, math.ceil(1297 / min(batch, 1297))) if lag else None)
    assert snapshots == plan.steps["experts-0"].params["epochs"] + 1
    assert (snapshots > 3) == lag


def test_windows_beyond_the_threshold_are_told_of(made, tmp_path):
    plan, folders = made({"name": "mkdt_plus"} | PLAIN | {"normalise": "layers"})
    curve = json.loads((folders["distill"] / "history.json").read_text())["matching_loss"]
    assert len(curve) == 4
    notes = []
    reporter = Reporter(sink=lambda event: notes.append(event.get("text", "")))
    method = plan.steps["distill"].params["method"] | {"threshold": max(value for _, value in curve) * (1 - 1e-6)}
    again(plan, folders, tmp_path, "again", reporter=reporter, method=method)
    assert "1 of 4 windows ended beyond the threshold and gave no gradient" in notes
