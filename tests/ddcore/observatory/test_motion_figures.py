"""The figures of motion hold the numbers measured, for one path or many, and cope with what has no direction."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddcore.observatory.motion import joined, motion
from ddcore.observatory.motion_figures import draw_motion
from ddcore.observatory.null import against_null
from ddcore.observatory.pca import centred_gram

LAYERS = [("conv.weight", 36), ("conv.bias", 4), ("fc.weight", 60)]


def measured(paths: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    read, rows, columns = joined(paths, {name: path.shape for name, path in paths.items()})
    found = motion(read, rows, torch.arange(len(rows[next(iter(rows))])) * 10, LAYERS, columns).to_json()
    gram = centred_gram(read, sum(map(len, rows.values())), columns)
    return found, against_null(gram, list(rows.values()), torch.Generator().manual_seed(0), draws=3)


def walk(seed: int, s: int = 6) -> Tensor:
    return torch.randn(s, 100, generator=torch.Generator().manual_seed(seed)).cumsum(0)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def test_a_student_and_its_average_are_drawn_with_their_numbers_the_same_each_time(tmp_path: Path) -> None:
    student = walk(1)
    found, null = measured({"student": student, "teacher": torch.cat([student[:1], 0.5 * (student[:-1] + student[1:])])})
    names = draw_motion(found, null, tmp_path)
    assert names == ["motion", "directions", "layers"]
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("png", "svg", "json")}
    for name in names:
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert min(pixels.shape) > 400
        assert 0.01 < (pixels < 200).mean() < 0.9
    drawn = read_json(tmp_path, "motion")
    assert drawn["pair"] == found["pair"]
    assert drawn["null"] == null
    assert drawn["paths"]["teacher"]["step_length"] == found["paths"]["teacher"]["step_length"]
    assert read_json(tmp_path, "directions")["cosines"]["student"] == found["paths"]["student"]["cosines"]
    bias = read_json(tmp_path, "layers")["root_mean_square_displacement"]["student"]["conv.bias"]
    expected = (student[:, 36:40] - student[0, 36:40]).square().mean(1).sqrt()
    assert bias == pytest.approx(expected.tolist(), rel=1e-5)
    (tmp_path / "again").mkdir()
    draw_motion(found, null, tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_many_paths_and_paths_that_stand_still_are_drawn(tmp_path: Path) -> None:
    paths = {f"expert {number}": walk(number, 3) for number in range(5)}
    paths["expert 1"] = torch.ones(3, 100)
    found, null = measured(paths)
    assert draw_motion(found, null, tmp_path, "expert_", "epoch") == ["expert_motion", "expert_directions", "expert_layers"]
    assert list(read_json(tmp_path, "expert_directions")["cosines"]) == ["expert 0", "expert 1", "expert 2"]
    assert read_json(tmp_path, "expert_directions")["cosines"]["expert 1"] == [[None, None], [None, None]]
    assert set(read_json(tmp_path, "expert_motion")["paths"]) == set(paths)
    assert (tmp_path / "expert_motion.svg").read_text().rstrip().endswith("</svg>")


def test_draws_that_are_all_alike_but_for_rounding_are_drawn(tmp_path: Path) -> None:
    """Two steps have two orders, and equal shares in both: their mean may lie below their least by rounding."""
    found, null = measured({"student": walk(0, 3)})
    null["shuffled"] = [[0.9605054162, 0.0394945838]] * 20
    shares = 100 * np.asarray(null["shuffled"])
    assert (shares.mean(0) < shares.min(0)).any()
    assert "motion" in draw_motion(found, null, tmp_path)
