"""The monitor says what its curves say, in the picture and in numbers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ddcore.observatory.collapse_figure import draw_collapse

LARGEST = math.log(32)


def rows_of(rank: float, labelled: bool = True) -> list[dict[str, Any]]:
    both = [{"network": name, "step": step, "rank": 9.0 - step / 10, "knn": 50.0} for name in ("student", "teacher") for step in (0, 40)]
    both[-1]["rank"] = rank
    return both if labelled else [{**row, "knn": None} for row in both]


@pytest.mark.parametrize(
    ("entropy", "kl", "rank", "verdict"),
    [(0.6, 0.3, 8.0, None), (1.0, 0.0, 8.0, "uniform"), (0.001, 0.001, 8.0, "single"), (0.6, 0.3, 1.2, "rank")],
)
def test_the_verdict_follows_the_last_values(tmp_path: Path, entropy: float, kl: float, rank: float, verdict: str | None) -> None:
    history = {"entropy": [[0, 0.9 * LARGEST], [40, entropy * LARGEST]], "kl": [[0, 1.0], [40, kl * LARGEST]]}
    assert draw_collapse(history, rows_of(rank), 32, 10.0, tmp_path) == verdict
    numbers = json.loads((tmp_path / "collapse.json").read_text())
    assert (numbers["verdict"], numbers["out_dim"], numbers["entropy"]) == (verdict, 32, history["entropy"])
    assert [row["rank"] for row in numbers["teacher"]] == [9.0, rank]


def test_without_labels_a_panel_is_left_out(tmp_path: Path) -> None:
    history = {"entropy": [[0, 3.0], [40, 2.0]], "kl": [[0, 1.0], [40, 0.5]]}
    draw_collapse(history, rows_of(8.0), 32, 10.0, tmp_path)
    with_labels = (tmp_path / "collapse.png").stat().st_size
    draw_collapse(history, rows_of(8.0, labelled=False), 32, None, tmp_path)
    assert (tmp_path / "collapse.png").stat().st_size < with_labels
