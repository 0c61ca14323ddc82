import io
from typing import Any

import pytest
from rich.console import Console

from potstill.progress import Bars, Lines, Pace, Stage, duration, remaining, stages


def step(name: str, kind: str, state: str, done: int = 0, total: int = 0, **more: Any) -> dict[str, Any]:
    progress = {"done": done, "total": total, "unit": "epochs"} if total else None
    return {
        "name": name,
        "kind": kind,
        "state": state,
        "cached": False,
        "progress": progress,
        "started_at": None,
        "finished_at": None,
    } | more


JOB: dict[str, Any] = {
    "steps": [
        step("dataset-1", "dataset", "succeeded", cached=True),
        step("teacher", "teacher", "succeeded", 7, 8, started_at="2025-01-01T00:00:00Z", finished_at="2025-01-01T00:00:04.5Z"),
        step("experts-0", "experts", "succeeded", started_at="2025-01-01T00:00:05Z", finished_at="2025-01-01T00:00:09Z"),
        step("experts-1", "experts", "running", 2, 8, started_at="2025-01-01T00:00:06Z"),
        step("init-high_loss", "distill", "blocked"),
        step("distill", "distill", "blocked"),
    ]
}


def test_steps_gather_into_stages_in_order() -> None:
    assert stages(JOB) == [
        Stage("read the images", 1, 1, "steps", False, True, None),
        Stage("train the teacher", 8, 8, "epochs", False, False, 4.5),
        Stage("train experts", 1.25, 2, "steps", True, False, None),
        Stage("choose subsets", 0, 1, "steps", False, False, None),
        Stage("distil", 0, 1, "steps", False, False, None),
    ]


def test_the_distillations_of_a_sweep_are_one_stage_and_the_ranking_another() -> None:
    steps = [
        step("mkdt/0/distill", "distill", "succeeded", 9, 9),
        step("0/random-0", "distill", "blocked"),
        step("raw/0/distill", "distill", "running", 3, 9),
        step("ranking", "ranking", "blocked"),
    ]
    assert [(one.name, round(one.done, 2), one.total) for one in stages({"steps": steps})] == [
        ("distil", 1.33, 2),
        ("choose subsets", 0, 1),
        ("rank the variants", 0, 1),
    ]


def test_a_stage_takes_the_time_in_which_any_of_its_steps_ran() -> None:
    def ran(start: int, end: int) -> dict[str, Any]:
        return step(
            f"random-{start}", "distill", "succeeded", started_at=f"2025-01-01T00:00:{start:02}Z", finished_at=f"2025-01-01T00:00:{end:02}Z"
        )

    (stage,) = stages({"steps": [ran(20, 25), ran(1, 3), ran(22, 24), ran(24, 30)]})
    assert stage.seconds == 2 + 10


def test_pace_begins_with_what_was_done_when_first_seen() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])

    def at(time: float, done: float) -> tuple[float | None, float | None]:
        now[0] = time
        return pace.update(Stage("distil", done, 100, "iterations", True, False, None))

    assert at(0, 40) == (None, None)
    assert at(2, 60) == (10, 4)
    assert at(4, 10) == (None, None)  # a new attempt began further back
    assert at(5, 20) == (10, 8)


def test_lines_name_what_runs_and_what_is_over_once() -> None:
    out, now = io.StringIO(), [0.0]
    lines = Lines(Console(file=out, width=100), lambda: now[0])
    lines.update(JOB)
    now[0] = 4.0
    lines.update(JOB)
    text = out.getvalue().splitlines()
    assert [line.split("  ")[1] for line in text] == ["read the images", "train the teacher", "train experts"]
    assert "cached" in text[0]
    assert "took 4.5 s" in text[1]
    assert "1.2/2 steps" in text[2]
    left = JOB | {"eta": {"low_seconds": 30, "high_seconds": 40, "runs": 1}}
    for now[0] in (5.0, 8.0, 8.5, 12.0):
        lines.update(left)
    assert [line for line in out.getvalue().splitlines() if "left" in line] == ["  about 30 to 40 seconds left, from 1 past run"]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.3, "about to end"),
        (0.6, 1.4, "about 1 second left"),
        (0.2, 40, "up to 40 seconds left"),
        (118, 121, "about 2 minutes left"),
        (31, 50, "about 31 to 50 seconds left"),
        (62, 130, "about 1 to 2 minutes left"),
        (20, 3000, "up to 50 minutes left"),
        (5400, 7400, "about 1.5 to 2.1 hours left"),
        (80_000, 400_000, "about 22 to 111 hours left"),
    ],
)
def test_the_time_to_the_end_in_words(low: float, high: float, words: str) -> None:
    assert remaining({"eta": {"low_seconds": low, "high_seconds": high, "runs": 3}}) == f"{words}, from 3 past runs"


def test_nothing_is_said_of_a_job_without_an_eta() -> None:
    assert [remaining(job) for job in ({}, {"eta": None})] == ["", ""]


def test_bars_show_stages_that_have_begun() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    with Bars(console) as bars:
        bars.update(JOB | {"eta": {"low_seconds": 30, "high_seconds": 40, "runs": 3}})
    assert "train experts" in out.getvalue()
    assert "about 30 to 40 seconds left" in out.getvalue()
    assert "distil" not in out.getvalue()


def test_durations() -> None:
    assert [duration(s) for s in (4.24, 65, 7384, None)] == ["4.2 s", "1:05", "2:03:04", ""]
