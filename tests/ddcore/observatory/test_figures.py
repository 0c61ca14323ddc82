"""The figures hold the recorded numbers, leave out what was never recorded and say so, and repeat byte for byte."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import rcParams
from PIL import Image
from safetensors.torch import load_file
from sklearn.decomposition import PCA

from ddcore.data.images import load_dataset
from ddcore.errors import DdcoreError
from ddcore.ledger import Ledger
from ddcore.observatory import recordings
from ddcore.observatory.figures import NAMES, draw_figures
from ddcore.synthetic import load_synthetic
from ddcore.task import Task

Recorded = Callable[..., Task]
Drawn = tuple[Task, dict[str, Any]]


def numbers_of(task: Task, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((task.out / f"{name}.json").read_text())
    return found


def test_every_figure_is_a_picture_that_shows_something_and_a_vector_file(drawn: Drawn) -> None:
    task, summary = drawn
    assert (summary["figures"], summary["left_out"]) == (list(NAMES), {})
    assert {path.name for path in task.out.iterdir()} == {f"{name}.{kind}" for name in NAMES for kind in ("png", "svg", "json")}
    for name in NAMES:
        pixels = np.asarray(Image.open(task.out / f"{name}.png").convert("L"))
        assert min(pixels.shape) > 400
        assert 0.01 < (pixels < 200).mean() < 0.9
        assert (task.out / f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_expert_figure_holds_the_pca_of_all_snapshots(drawn: Drawn) -> None:
    task, _ = drawn
    paths = torch.cat([load_file(folder / "experts.safetensors")["trajectories"] for folder in task.inputs["experts"]])
    reference = PCA(2, svd_solver="full")
    expected = reference.fit_transform(paths.flatten(0, 1).double().numpy())
    found = numbers_of(task, "expert_trajectories")
    drawn = np.array([[row["x"], row["y"]] for row in found["rows"]])
    np.testing.assert_allclose(np.abs(drawn), np.abs(expected), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found["explained"], reference.explained_variance_ratio_, rtol=1e-6)
    starts = [(row["dx"], row["dy"]) for row in found["rows"] if row["epoch"] == 0]
    assert starts == [(0.0, 0.0)] * 7
    assert found["explained_of_moves"][0] > found["explained"][0]  # moves share a direction; starts do not
    assert np.mean([row["dx"] for row in found["rows"] if row["epoch"] == 4]) > 0


def test_distances_are_the_networks_own(drawn: Drawn) -> None:
    task, _ = drawn
    run = load_file(task.input("teacher") / "trajectory.safetensors")
    found = numbers_of(task, "distances")
    apart = [row["distance"] for row in found["teacher"] if row["curve"] == "student from teacher"]
    np.testing.assert_allclose(apart, (run["student"] - run["teacher"]).norm(dim=1).numpy(), rtol=1e-4, atol=1e-4)
    first = load_file(task.inputs["experts"][0] / "experts.safetensors")["trajectories"][0]
    moved = [row["distance"] for row in found["experts"] if row["expert"] == 0]
    np.testing.assert_allclose(moved, (first - first[0]).norm(dim=1).numpy(), rtol=1e-4, atol=1e-4)


def test_losses_and_images_hold_what_was_recorded(drawn: Drawn) -> None:
    task, _ = drawn
    losses = numbers_of(task, "losses")
    assert len(losses["teacher"]) == 200
    assert len(losses["experts"]) == 7 * 4
    assert losses["matching"][-1]["step"] == 2500
    data, real = load_synthetic(task.input("set") / "synthetic.safetensors"), load_dataset(task.input("dataset")).images
    found = numbers_of(task, "images")
    assert len(found["rows"]) == 36
    for row in found["rows"][::7]:
        place = row["place"]
        assert row["real_image"] == int(data.indices[place])
        change = (data.images[place] - real[row["real_image"]].float() / 255).abs().mean()
        assert row["mean_absolute_change"] == pytest.approx(float(change), rel=1e-4)


def test_other_teachers_are_drawn_alone_and_a_selected_set_has_no_matching(recorded: Recorded) -> None:
    task = recorded(ssl="barlow_twins", shards=(1,), matched=False)
    summary = draw_figures(task)
    assert set(summary["left_out"]) == {"inner_path"}
    assert "matches no trajectories" in summary["left_out"]["inner_path"]
    assert {row["network"] for row in numbers_of(task, "teacher_trajectories")["rows"]} == {"student"}
    assert {row["curve"] for row in numbers_of(task, "distances")["teacher"]} == {"student from its start"}
    assert set(numbers_of(task, "losses")) == {"teacher", "experts"}
    assert max(row["mean_absolute_change"] for row in numbers_of(task, "images")["rows"]) < 1e-6


def test_what_was_never_recorded_is_left_out_with_a_reason(recorded: Recorded) -> None:
    task = recorded(ssl="given", shards=(), matched=False)
    summary = draw_figures(task)
    assert summary["figures"] == ["images"]
    assert "given" in summary["left_out"]["teacher_trajectories"]
    assert set(summary["left_out"]) == set(NAMES) - {"images"}
    assert {path.stem for path in task.out.iterdir()} == {"images"}


def test_many_experts_are_thinned_evenly(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MOST_EXPERTS", 3)
    task = recorded(shards=(4, 3))
    paths = recordings.read_experts(task.inputs["experts"], Ledger(task.work, "experts", task.reporter), task.reporter)
    assert paths is not None
    assert (paths.experts, paths.recorded) == (3, 7)
    last = load_file(task.inputs["experts"][1] / "experts.safetensors")["trajectories"][2]
    expected = (last[-1] - last[0]).norm()
    found = paths.gram[14, 14] + paths.gram[10, 10] - 2 * paths.gram[14, 10]
    assert float(found.sqrt()) == pytest.approx(float(expected), rel=1e-4)


def test_figures_repeat_byte_for_byte_and_leave_matplotlibs_settings_alone(drawn: Drawn, recorded: Recorded) -> None:
    (first, _), second, settings = drawn, recorded(), dict(rcParams)
    draw_figures(second)
    assert dict(rcParams) == settings
    for path in first.out.iterdir():
        assert path.read_bytes() == (second.out / path.name).read_bytes(), path.name


def test_a_damaged_shard_is_a_missing_input(recorded: Recorded) -> None:
    task = recorded()
    (task.inputs["experts"][1] / "experts.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DdcoreError, match=r"experts\.safetensors cannot be read") as caught:
        draw_figures(task)
    assert caught.value.code == "missing_input"
