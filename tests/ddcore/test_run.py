"""A whole plan in a tree of folders: the same bits twice, nothing done twice, and nothing lost when it is stopped."""

import errno
import json
from threading import Event, Thread

import pytest
import torch

from ddcore import run as running
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


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore words"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 20 GiB.\nmore words"),
        MemoryError("Unable to allocate 20 GiB for an array"),
        OSError(errno.ENOMEM, "20 GiB: Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out_is_named_with_what_there_is_and_what_to_try(tmp_path, monkeypatch, error):
    def hungry(task):
        raise error

    monkeypatch.setitem(STEPS, "experts", hungry)
    with pytest.raises(DdcoreError, match=r"20 GiB.*; the step had \d+\.\d\d GiB of memory to share") as caught:
        run_step("experts", {}, {}, tmp_path / "out", tmp_path / "work", Reporter(), CPU, Resources())
    assert caught.value.code == "out_of_memory"
    assert "more words" not in caught.value.detail
    assert "smaller batches" in caught.value.hint


def test_a_figure_that_is_not_finite_is_a_divergence(tmp_path, monkeypatch):
    monkeypatch.setitem(STEPS, "experts", lambda task: {"losses": [0.5, float("nan")]})
    with pytest.raises(DdcoreError, match="is not finite") as caught:
        run_step("experts", {}, {}, tmp_path / "out", tmp_path / "work", Reporter(), CPU, Resources())
    assert caught.value.code == "diverged"


def test_an_error_that_is_not_of_memory_stays_what_it_was(tmp_path, monkeypatch):
    def broken(task):
        raise RuntimeError("sizes do not match")

    monkeypatch.setitem(STEPS, "experts", broken)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        run_step("experts", {}, {}, tmp_path / "out", tmp_path / "work", Reporter(), CPU, Resources())


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


def chain(*edges):
    """`chain("a", "b<a")`: a plan of steps that do nothing but be counted."""
    plan = Plan()
    for edge in edges:
        name, _, before = edge.partition("<")
        plan.add(name, "report", {"name": name}, {"cells": before.split(",")} if before else {})
    return plan


def run_counted(root, plan, done, **options):
    run_plan(plan, root, CPU, Resources(), lambda step: Reporter(), lambda step, *rest: done.append(step.name), **options)


def test_two_runs_in_one_folder_share_the_work(tmp_path, monkeypatch):
    """Each takes steps that the other is not at; what both need is run once."""
    ran, first_is_at_a, go_on = [], Event(), Event()

    def step(task):
        ran.append(task.params["name"])
        if task.params["name"] == "a":
            first_is_at_a.set()
            assert go_on.wait(30)
        if task.params["name"] == "d":
            go_on.set()
        return {}

    monkeypatch.setitem(STEPS, "report", step)
    monkeypatch.setattr(running, "WAIT", 0.01)
    one, other = [], []
    first = Thread(target=run_counted, args=(tmp_path, chain("a", "b<a"), one))
    first.start()
    assert first_is_at_a.wait(30)
    run_counted(tmp_path, chain("a", "c<a", "d"), other)
    first.join()
    assert sorted(ran) == ["a", "b", "c", "d"]
    assert one == ["a", "b"]
    assert other == ["d", "a", "c"]
    assert not list((tmp_path / "locks").iterdir())


def test_a_run_that_waits_for_another_can_be_stopped_and_a_broken_one_lets_go(tmp_path, monkeypatch):
    at_it, go_on = Event(), Event()

    def fail(task):
        at_it.set()
        assert go_on.wait(30)
        raise DdcoreError("diverged", "it ran away")

    def first_run():
        with pytest.raises(DdcoreError):
            run_counted(tmp_path, chain("a"), [])

    monkeypatch.setitem(STEPS, "report", fail)
    monkeypatch.setattr(running, "WAIT", 0.01)
    first = Thread(target=first_run)
    first.start()
    assert at_it.wait(30)
    with pytest.raises(Stopped):
        run_counted(tmp_path, chain("a"), [], should_stop=lambda: True)
    go_on.set()
    first.join()
    monkeypatch.setitem(STEPS, "report", lambda task: {})
    done = []
    run_counted(tmp_path, chain("a"), done)
    assert done == ["a"]
