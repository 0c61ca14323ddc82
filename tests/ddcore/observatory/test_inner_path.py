"""Pre-training on a set is run_inner's, its distances are those of its parameters, and the plane is that of the experts alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.decomposition import PCA

from ddcore.data.images import load_dataset
from ddcore.errors import DdcoreError, Stopped
from ddcore.events import Reporter
from ddcore.ledger import Ledger
from ddcore.matching.adjoint import Inner, Memory, batches_of, run_inner
from ddcore.matching.explicit import core_of
from ddcore.networks.flat import build_student
from ddcore.observatory.figures import draw_figures
from ddcore.observatory.inner_path import Clock, InnerPaths, _kept, inner_paths
from ddcore.observatory.pca import centred_gram, principal_plane, projected_plane
from ddcore.specs import StudentSpec
from ddcore.synthetic import load_synthetic
from ddcore.task import Task, generator

Recorded = Callable[..., Task]


def ledger_of(task: Task) -> Ledger:
    return Ledger(task.work, "inner path", task.reporter)


@pytest.fixture(scope="module")
def found(recorded: Recorded) -> tuple[Task, InnerPaths]:
    task = recorded()
    data = load_synthetic(task.input("set") / "synthetic.safetensors")
    pace = Clock.of(data.info["method"])
    assert pace == Clock(9, 2 / 6)  # six steps for two epochs, and windows up to the third
    return task, inner_paths(task, data, task.inputs["experts"], pace, ledger_of(task))


def slow_runs(task: Task) -> dict[str, torch.Tensor]:
    """All parameters [10, P] of both runs, by `run_inner`."""
    data = load_synthetic(task.input("set") / "synthetic.safetensors")
    network = build_student(StudentSpec(**task.params["student"]), (1, 8, 8), 4)
    start = load_file(task.inputs["experts"][0] / "experts.safetensors")["trajectories"][0, 0]
    pixels = load_dataset(task.input("dataset")).images[data.indices].float() / 255
    targets = load_file(task.input("targets") / "targets.safetensors")["targets"][data.indices]
    runs = {}
    for name, images, goals in (("synthetic", data.images, data.targets), ("real", pixels, targets)):
        batches = batches_of(50, 20, 9, generator(0, "inner path"))
        inner = Inner(core_of(network, torch.device("cpu")), (images - 0.3) / 0.3, goals, torch.tensor(0.1), batches, 0.5)
        run = run_inner(inner, start, Memory())
        runs[name] = torch.stack([*(run.thetas[t] for t in range(9)), run.end])
    return runs


def test_runs_are_those_of_the_inner_loop_and_distances_those_to_the_expert_in_time(found: tuple[Task, InnerPaths]) -> None:
    task, paths = found
    expert = load_file(task.inputs["experts"][0] / "experts.safetensors")["trajectories"][0].double()
    assert paths.epochs == pytest.approx([t / 3 for t in range(10)])
    goals = [expert[int(t / 3)] * (1 - t % 3 / 3) + expert[min(int(t / 3) + 1, 4)] * (t % 3 / 3) for t in range(10)]
    assert paths.standing == pytest.approx([float((expert[0] - goal).norm()) for goal in goals], rel=1e-4, abs=1e-4)
    for name, run in slow_runs(task).items():
        expected = [float((theta.double() - goal).norm()) for theta, goal in zip(run, goals, strict=True)]
        assert paths.distances[name] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_plane_is_that_of_the_experts_moves_and_runs_are_projected_on_it(found: tuple[Task, InnerPaths]) -> None:
    task, paths = found
    shards = [load_file(folder / "experts.safetensors")["trajectories"].double() for folder in task.inputs["experts"]]
    moves = torch.cat([shard - shard[:, :1] for shard in shards]).flatten(0, 1).numpy()
    reference = PCA(2, svd_solver="full").fit(moves)
    runs = [(run.double() - run[0].double()).numpy() for run in slow_runs(task).values()]
    expected = np.concatenate([reference.transform(rows) - reference.transform(moves[:1]) for rows in (moves, *runs)])
    assert (paths.experts, paths.snapshots, paths.runs) == (7, 5, ["synthetic", "real"])
    np.testing.assert_allclose(np.abs(paths.plane.coordinates.numpy()), np.abs(expected), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(paths.plane.explained.numpy(), reference.explained_variance_ratio_, rtol=1e-5)


def test_a_plane_of_all_rows_is_the_principal_plane() -> None:
    rows = torch.randn(12, 40, generator=torch.Generator().manual_seed(0)).double()
    gram, ends = centred_gram(lambda a, b: rows[:, a:b], 12, 40), (torch.tensor([0]), torch.tensor([11]))
    plain, projected = principal_plane(gram, *ends), projected_plane(gram, torch.arange(12), *ends)
    np.testing.assert_allclose(projected.coordinates.numpy(), plain.coordinates.numpy(), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(projected.explained.numpy(), plain.explained.numpy(), rtol=1e-10)


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_that_diverges_is_left_out_with_a_note(recorded: Recorded) -> None:
    task = recorded()
    path: Path = task.input("set") / "synthetic.safetensors"
    data = load_synthetic(path)
    data.learned_lr.fill_(1e20)
    data.save(path)
    notes: list[str] = []
    told = Task(
        task.params,
        task.inputs,
        task.out,
        task.work,
        Reporter(lambda e: notes.append(e["text"]) if e["type"] == "note" else None),
        task.device,
    )
    summary = draw_figures(told)
    assert "inner_path" in summary["figures"]
    assert "synthetic_distance_left" not in summary
    assert [note.split(" at ")[0] for note in notes] == [f"pre-training on the {name} images" for name in ("synthetic", "real")]


def test_long_runs_and_those_of_large_networks_keep_few_points() -> None:
    assert _kept(9, 300) == list(range(10))
    assert _kept(1000, 300) == list(range(0, 1001, 25))
    assert _kept(80, 11_000_000) == [0, 14, 28, 42, 56, 70, 80]


def test_other_students_are_refused_and_a_long_run_can_be_stopped(recorded: Recorded) -> None:
    task = recorded(shards=(1,))
    data = load_synthetic(task.input("set") / "synthetic.safetensors")
    other = Task({"student": {"width": 8, "depth": 1}}, task.inputs, task.out, task.work, Reporter(), task.device)
    with pytest.raises(DdcoreError, match="experts have 308 parameters, but the student of the set has"):
        inner_paths(other, data, task.inputs["experts"], Clock(9, 1.0), ledger_of(other))
    calls = iter(range(1000))
    stopped = Task(task.params, task.inputs, task.out, task.work, Reporter(should_stop=lambda: next(calls) == 12), task.device)
    with pytest.raises(Stopped):
        inner_paths(stopped, data, task.inputs["experts"], Clock(1000, 0.001), ledger_of(stopped))
