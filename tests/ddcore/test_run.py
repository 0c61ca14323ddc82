"""A whole plan in a tree of folders: the same bits twice, nothing done twice, and nothing lost when it is stopped."""

import json

import pytest
import torch

from ddcore.data.builtins import facts
from ddcore.errors import DdcoreError, Stopped
from ddcore.events import Reporter
from ddcore.plan import STEP_VERSION, Plan, plan_distill
from ddcore.run import STEPS, choose_device, run_plan, run_step
from ddcore.specs import DistillSpec
from ddcore.task import Resources, generator

DATA = facts("digits-train")
CPU = torch.device("cpu")


def plan_of(**changes):
    """The smoke preset without the steps that only draw."""
    whole = plan_distill(DistillSpec(preset="smoke", **changes), DATA)
    return Plan({name: step for name, step in whole.steps.items() if step.kind not in ("figures", "export")})


def run(root, plan=None, reporter_of=lambda step: Reporter(), finished=()):
    told = []
    plan = plan or plan_of()
    folders = run_plan(plan, root, CPU, Resources(), reporter_of, lambda step, summary, cached: told.append((step.name, cached)), finished)
    return folders, dict(told)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    root = tmp_path_factory.mktemp("once")
    return root, *run(root)


def test_every_kind_of_step_has_its_function_and_its_version():
    assert set(STEPS) == set(STEP_VERSION)


def test_the_same_plan_gives_the_same_bits(once, tmp_path):
    _, folders, told = once
    assert not any(told.values())
    again, _ = run(tmp_path)
    for name, files in {
        "distill": ("synthetic.safetensors", "history.json"),
        "experts-1": ("experts.safetensors", "history.json"),
        "targets": ("targets.safetensors",),
        "teacher": ("teacher.safetensors", "trajectory.safetensors"),
    }.items():
        for file in files:
            assert (again[name] / file).read_bytes() == (folders[name] / file).read_bytes(), (name, file)
    other, _ = run(tmp_path, plan_of(seed=1))
    assert (other["distill"] / "synthetic.safetensors").read_bytes() != (folders["distill"] / "synthetic.safetensors").read_bytes()


def test_finished_steps_are_not_run_again(once, tmp_path):
    root, folders, _ = once
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    again, told = run(root)
    assert again == folders
    assert all(told.values())
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    # a plan that differs late shares what comes early, also from another tree
    later = plan_of(method={"name": "mkdt", "iterations": 3})
    shared, told = run(tmp_path, later, finished=[root])
    assert {name for name, cached in told.items() if not cached} == {"distill"}
    assert shared["teacher"] == folders["teacher"]
    assert shared["distill"].is_relative_to(tmp_path)


def test_only_finished_folders_and_their_manifest_are_left(once):
    root, folders, _ = once
    assert {path.suffix for path in (root / "steps").iterdir()} == {""}
    manifest = json.loads((folders["distill"] / "step.json").read_text())
    assert manifest["kind"] == "distill"
    assert manifest["params"] == plan_of().steps["distill"].params
    assert manifest["summary"]["num_images"] == 20
    assert manifest["seconds"] > 0
    assert {"torch", "numpy"} <= manifest["versions"].keys()


@pytest.mark.parametrize(("kind", "calls"), [("teacher", 9), ("experts", 12), ("distill", 5)])
def test_a_run_stopped_in_any_long_step_resumes_to_the_same_bits(once, tmp_path, kind, calls):
    _, folders, _ = once
    began, left = [], iter(range(calls))

    def reporter_of(step):
        began.append(step.name)
        if step.kind == kind and (kind != "distill" or step.name == "distill"):
            return Reporter(should_stop=lambda: next(left, None) is None)
        return Reporter()

    with pytest.raises(Stopped):
        run(tmp_path, reporter_of=reporter_of)
    stopped = began[-1]
    assert not (tmp_path / "steps" / folders[stopped].name).exists()
    assert (tmp_path / "steps" / f"{folders[stopped].name}.work" / "checkpoint.safetensors").exists()
    heard = []
    again, told = run(tmp_path, reporter_of=lambda step: Reporter(sink=lambda e: heard.append((step.name, e))))
    assert next(name for name, cached in told.items() if not cached) == stopped
    first = next(event for name, event in heard if name == stopped and event["type"] == "progress")
    assert first["done"] > 0  # it did not begin anew
    for file in ("synthetic.safetensors", "history.json"):
        assert (again["distill"] / file).read_bytes() == (folders["distill"] / file).read_bytes()
    assert (again["experts-0"] / "history.json").read_bytes() == (folders["experts-0"] / "history.json").read_bytes()


def test_a_step_that_fails_leaves_no_folder_and_costs_no_finished_one(tmp_path):
    plan = plan_of(experts={"lr": 1e30})
    with pytest.raises(DdcoreError, match="an expert's loss became"):
        run(tmp_path, plan)
    kinds = {path.name.partition("-")[0] for path in (tmp_path / "steps").iterdir() if not path.suffix}
    assert kinds == {"dataset", "teacher", "targets"}


def test_memory_that_runs_out_is_named_with_what_to_try(tmp_path, monkeypatch):
    def hungry(task):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore words")

    monkeypatch.setitem(STEPS, "experts", hungry)
    with pytest.raises(DdcoreError, match=r"^CUDA out of memory\. Tried to allocate 20 GiB\.$") as caught:
        run_step("experts", {}, {}, tmp_path / "out", tmp_path / "work", Reporter(), CPU, Resources())
    assert caught.value.code == "out_of_memory"
    assert "smaller batches" in caught.value.hint


def test_streams_of_randomness_are_named_and_apart():
    def numbers(*stream):
        return torch.rand(4, generator=generator(*stream)).tolist()

    torch.manual_seed(1)
    one = numbers(3, "expert", 1)
    torch.manual_seed(2)
    assert numbers(3, "expert", 1) == one
    others = [numbers(4, "expert", 1), numbers(3, "expert", 2), numbers(3, "matching", 1), numbers(3, "expert", 11)]
    assert len({tuple(row) for row in [one, *others]}) == 5


def test_devices_by_name():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
