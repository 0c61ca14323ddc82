"""The figures of snapshots and of noise show something, keep their numbers, and take what is undefined."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddcore.observatory.feature_figures import draw_features, draw_noise

STEPS = [0, 40, 80, 120]


def rows_of(*networks: str, labelled: bool = True) -> list[dict[str, Any]]:
    return [
        {"network": name, "step": s, "knn": 40 + s / 4 if labelled else None, "rank": 30 - s / 10, "cka_to_last": 0.4 + s / 200}
        for name in networks
        for s in STEPS
    ]


def noise_of(ratio: list[float | None], deviation: list[float | None]) -> dict[str, Any]:
    return {"runs": 4, "step": STEPS, "signal": [0.0, 1.0, 2.0, 2.5], "noise": [0.0, 0.7, 1.1, 1.2], "ratio": ratio, "deviation": deviation}


def size_if_it_shows_something(folder: Path, name: str) -> tuple[int, int]:
    picture = Image.open(folder / f"{name}.png").convert("L")
    assert 0.01 < (np.asarray(picture) < 200).mean() < 0.9
    assert (folder / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    return picture.size


def test_features_have_a_panel_less_without_labels(tmp_path: Path) -> None:
    rows = rows_of("student", "teacher")
    draw_features(rows, tmp_path)
    wide = size_if_it_shows_something(tmp_path, "features")
    assert json.loads((tmp_path / "features.json").read_text()) == {"rows": rows}
    draw_features(rows_of("student", labelled=False), tmp_path)
    narrow = size_if_it_shows_something(tmp_path, "features")
    assert narrow[0] * 3 == pytest.approx(wide[0] * 2, abs=3)


def test_noise_keeps_its_numbers_with_gaps_and_without_any_ratio(tmp_path: Path) -> None:
    found = {"student": noise_of([None, 0.7, 0.55, 0.48], [None, None, 0.1, 0.05]), "teacher": noise_of([None] * 4, [None] * 4)}
    draw_noise(found, tmp_path)
    size_if_it_shows_something(tmp_path, "noise")
    assert json.loads((tmp_path / "noise.json").read_text()) == found
    first = (tmp_path / "noise.svg").read_bytes()
    draw_noise(found, tmp_path)
    assert (tmp_path / "noise.svg").read_bytes() == first
    draw_noise({"teacher": found["teacher"]}, tmp_path)
    assert (tmp_path / "noise.svg").read_bytes() != first
