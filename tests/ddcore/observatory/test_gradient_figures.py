"""Gradients' scatter is drawn for whatever was measured, with gaps where batches shared nothing."""

import json
from pathlib import Path

from ddcore.observatory.gradient_figures import draw_gradient_noise, expert_ratios, teacher_ratios

EXPERT = {"epoch": [0, 1, 2], "encoder": [0.4, None, 0.8], "all": [0.3, 0.5, 12.0]}


def test_teacher_and_expert_are_drawn_together_or_alone(tmp_path: Path) -> None:
    teacher, expert = teacher_ratios("simclr", 64, [[0, 0.5], [40, 7.0]], 80), expert_ratios(EXPERT, 32)
    seen = []
    for curves in (teacher, expert, teacher + expert):
        assert draw_gradient_noise(curves, tmp_path)
        seen.append((tmp_path / "gradient_noise.png").read_bytes())
    assert len(set(seen)) == 3
    numbers = json.loads((tmp_path / "gradient_noise.json").read_text())["curves"]
    assert numbers[0] == {"name": "SimCLR", "batch_size": 64, "time": [0, 40], "ratio": [0.5, 7.0]}
    assert numbers[1]["ratio"] == [0.4, None, 0.8]
    assert draw_gradient_noise(teacher_ratios("simclr", 64, [[0, 0.5], [40, 7.0]], 40), tmp_path)
    assert (tmp_path / "gradient_noise.png").read_bytes() != seen[0]  # half of a run is drawn as half of it


def test_nothing_measured_is_nothing_drawn(tmp_path: Path) -> None:
    assert not draw_gradient_noise(teacher_ratios("dino", 64, [], 80), tmp_path)
    assert not list(tmp_path.iterdir())
