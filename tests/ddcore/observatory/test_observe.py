"""The observe step on real, tiny runs of the digits: what it writes, what it says, what it refuses."""

import json
import math
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from ddcore.data.builtins import facts
from ddcore.errors import DdcoreError
from ddcore.events import Reporter
from ddcore.observatory.observe import observe
from ddcore.plan import Plan, plan_observe
from ddcore.run import run_plan
from ddcore.specs import ObserveSpec
from ddcore.task import Resources, Task

TEACHER = {
    "ssl": "dino",
    "backbone": {"name": "convnet", "width": 8, "depth": 2},
    "epochs": 2,
    "warmup_epochs": 0,
    "out_dim": 32,
    "hidden_dim": 32,
    "bottleneck_dim": 16,
    "snapshots": 4,
    "gradient_batches": 4,
    "augment": {"flip": False, "jitter": 0.0, "grayscale": 0.0},
}
CPU = torch.device("cpu")


def run(root: Path, plan: Plan) -> dict[str, Path]:
    return run_plan(plan, root, CPU, Resources(), lambda step: Reporter(), lambda step, summary, cached: None)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs of DINO and two experts, observed."""
    spec = ObserveSpec(teacher=TEACHER, runs=2, experts=2, epochs=2, student={"depth": 1, "width": 4})
    return run(tmp_path_factory.mktemp("observed"), plan_observe(spec, facts("digits-train")))


def test_the_table_holds_what_the_snapshots_say(observed: dict[str, Path]) -> None:
    table = json.loads((observed["observe"] / "observations.json").read_text())
    curves: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in table["rows"]:
        assert set(row) - {"layer"} == {"quantity", "path", "step", "value"}
        if "layer" not in row:
            curves[row["quantity"], row["path"]].append(row["value"])
    kept = load_file(observed["teacher"] / "trajectory.safetensors")
    student, teacher = kept["student"].double(), kept["teacher"].double()
    assert curves["distance_from_start", "student"] == pytest.approx((student - student[0]).norm(dim=1).tolist())
    assert curves["gap", "student and teacher"] == pytest.approx((teacher - student).norm(dim=1).tolist())
    whole = [
        row["value"] ** 2 for row in table["rows"] if row.get("layer") and row["path"] == "student" and row["step"] == kept["step"][-1]
    ]
    assert math.sqrt(sum(whole)) == pytest.approx(curves["distance_from_start", "student"][-1])
    other = load_file(observed["teacher-1"] / "trajectory.safetensors")["student"].double()
    scatter = float((student[-1] - other[-1]).norm()) / math.sqrt(2)  # with two runs, noise^2 is half the squared distance
    assert curves["runs_noise", "student"][-1] == pytest.approx(scatter)
    assert [path for quantity, path in curves if quantity == "distance_from_start"] == ["student", "teacher", "expert 0", "expert 1"]
    assert len(curves["cka_to_last", "teacher"]) == len(kept["step"]) == 4
    assert curves["cka_to_last", "teacher"][-1] == pytest.approx(1.0)


def test_the_parquet_file_holds_the_same_rows(observed: dict[str, Path]) -> None:
    rows = json.loads((observed["observe"] / "observations.json").read_text())["rows"]
    table = pyarrow.parquet.read_table(observed["observe"] / "observations.parquet")
    assert table.column_names == ["quantity", "path", "layer", "step", "value"]
    assert table.to_pylist() == [{"layer": None, **row} for row in rows]
    assert {row["layer"] for row in rows if row["quantity"] == "layer_displacement"} == set(table["layer"].to_pylist()) - {None}


def test_the_summary_has_the_headline_numbers_and_the_figures_are_there(observed: dict[str, Path]) -> None:
    folder = observed["observe"]
    summary = json.loads((folder / "step.json").read_text())["summary"]
    assert (summary["ssl"], summary["runs"], summary["snapshots"], summary["experts"]) == ("dino", 2, 4, 2)
    assert 0 < summary["gap"] < summary["distance"] * 2
    assert 0 < summary["ema_residual"] < 1e-4
    assert summary["collapse"] is None
    assert 0 < summary["noise_to_signal_student"] < 10
    assert 0 < summary["noise_to_signal_experts"] < 10
    assert 0 < summary["expert_gradient_noise"] < 10
    losses = json.loads((observed["experts-0"] / "history.json").read_text())["loss"][0]
    assert summary["expert_loss"] == pytest.approx(losses[-1], rel=0.2)  # that of an epoch, of weights on their way
    assert 0 < summary["explained_by_plane"] <= 1 + 1e-9
    motion = {"motion", "directions", "layers"}
    others = {
        "teacher_trajectories",
        "expert_trajectories",
        "losses",
        "features",
        "noise",
        "expert_noise",
        "gradient_noise",
        "landscape",
        "collapse",
    }
    assert set(summary["figures"]) == motion | {f"expert_{name}" for name in motion} | others
    for name in summary["figures"]:
        assert all((folder / f"{name}.{form}").stat().st_size > 100 for form in ("png", "svg", "json"))


@pytest.mark.usefixtures("blank_pictures")
def test_a_single_run_of_another_kind_has_no_gap_and_no_noise(tmp_path: Path) -> None:
    teacher = {name: TEACHER[name] for name in ("backbone", "epochs", "warmup_epochs", "snapshots", "augment")}
    folders = run(tmp_path, plan_observe(ObserveSpec(teacher={"ssl": "simclr", **teacher}), facts("digits-train")))
    summary = json.loads((folders["observe"] / "step.json").read_text())["summary"]
    assert not {"gradient_noise", "collapse"} & set(summary["figures"])
    assert not {name for name in summary if name == "gap" or name.startswith(("noise", "experts", "ema"))}
    assert summary["distance"] > 0


def task_of(observed: dict[str, Path], out: Path, *teachers: Path) -> Task:
    out.mkdir()
    inputs = {"dataset": [next(path for name, path in observed.items() if name.startswith("dataset"))]}
    return Task({"seed": 0}, inputs | {"teacher": list(teachers)}, out, out, Reporter(), CPU)


def test_a_run_without_snapshots_says_what_to_do(observed: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "teacher.json").write_text((observed["teacher"] / "teacher.json").read_text())
    with pytest.raises(DdcoreError, match="no recorded run") as caught:
        observe(task_of(observed, tmp_path / "out", bare))
    assert (caught.value.code, "ssl dino, barlow_twins or simclr" in caught.value.hint) == ("missing_input", True)


@pytest.mark.usefixtures("blank_pictures")
def test_a_service_names_no_role_that_nothing_plays(observed: dict[str, Path], tmp_path: Path) -> None:
    summary = observe(task_of(observed, tmp_path / "out", observed["teacher"]))
    assert (summary["runs"], "experts" in summary) == (1, False)


def test_the_scatter_of_gradients_stands_beside_that_of_the_experts(observed: dict[str, Path]) -> None:
    history = json.loads((observed["teacher"] / "history.json").read_text())
    curves = json.loads((observed["observe"] / "gradient_noise.json").read_text())["curves"]
    assert [[step, ratio] for step, ratio in zip(curves[0]["time"], curves[0]["ratio"], strict=True)] == history["gradient_noise"]
    assert [(one["name"], one["batch_size"]) for one in curves] == [
        ("DINO", 256), ("expert's encoder, on targets", 256), ("expert with its last layer", 256)
    ]  # fmt: skip
    assert curves[1]["time"] == [0, 1, 2]
    rows = json.loads((observed["observe"] / "observations.json").read_text())["rows"]
    assert [row["value"] for row in rows if (row["quantity"], row["path"]) == ("gradient_noise", "expert 0")] == curves[2]["ratio"]


@pytest.mark.usefixtures("blank_pictures")
def test_runs_of_different_networks_share_no_plane(observed: dict[str, Path], tmp_path: Path) -> None:
    wider = TEACHER | {"backbone": {"name": "convnet", "width": 12, "depth": 2}}
    plan = plan_observe(ObserveSpec(teacher=wider), facts("digits-train"))
    other = run(tmp_path / "wider", Plan({name: step for name, step in plan.steps.items() if name != "observe"}))
    with pytest.raises(DdcoreError, match="different networks") as caught:
        observe(task_of(observed, tmp_path / "out", observed["teacher"], other["teacher"]))
    assert caught.value.code == "missing_input"
