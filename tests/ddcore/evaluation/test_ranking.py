"""A ranking's numbers are those of a calculation by hand; n counts distillations, and pairing is by the distillation's seed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ddcore.evaluation.ranking import make_ranking
from ddcore.events import Reporter
from ddcore.task import Task

# variant -> arm -> the score of distillations 4, 5 and 6: what the evaluations of each are made to average to
SCORES = {
    "plain": {"synthetic": [60.0, 62.0, 67.0], "k_means": [59.0, 60.0, 66.0]},
    "better": {"synthetic": [62.0, 63.0, 73.0], "k_means": [58.0, 61.0, 66.0]},
}
FRACTIONS = {0.01: -15.0, 0.05: 15.0}  # share of the labels: what it adds
KNN = 20.0
T = 4.302653  # Student's t, 2 degrees of freedom, 97.5 %


def make_task(root: Path, distillations: int = 3, networks: tuple[str, ...] = ("convnet-2x8",), **params: Any) -> Task:
    """Two evaluations of each distillation, of two draws each, scattered widely and evenly about its score."""
    cells, teachers = [], []
    for number in range(distillations):
        for variant, arms in SCORES.items():
            for place, network in enumerate(networks):
                for evaluation in (0, 1):
                    records = []
                    for arm, scores in arms.items():
                        shared = scores[number] + 10 * place + (8 if evaluation else -8)
                        about = {"arm": arm, "task": 0, "network": network, "seed": 2 * number + evaluation}
                        for fraction, more in FRACTIONS.items():
                            records += [
                                about | {"fraction": fraction, "draw": draw, "probe": "ridge", "accuracy": shared + more + 2 * draw - 1}
                                for draw in (0, 1)
                            ]
                        records.append(about | {"fraction": 1.0, "draw": 0, "probe": "knn", "accuracy": shared + KNN})
                    cells.append(root / f"cell-{len(cells)}")
                    cells[-1].mkdir(parents=True)
                    (cells[-1] / "scores.json").write_text(json.dumps({"records": records}))
            teachers.append(root / f"teacher-{number}-{variant}")
            teachers[-1].mkdir()
            (teachers[-1] / "teacher.json").write_text(json.dumps({"ssl": "dino", "knn_accuracy": 90.0 + number}))
    (root / "out").mkdir()
    budgets = {variant: {"images": 20, "steps": 100} for variant in SCORES}
    given = {
        "variants": list(SCORES),
        "seeds": [4, 5, 6][:distillations],
        "networks": len(networks),
        "tasks": ["a -> b"],
        "budgets": budgets,
    }
    return Task(given | params, {"cells": cells, "teachers": teachers}, root / "out", root / "work", Reporter(), torch.device("cpu"))


def ranked(task: Task) -> tuple[dict[str, Any], str]:
    make_ranking(task)
    return json.loads((task.out / "ranking.json").read_text()), (task.out / "ranking.md").read_text()


def test_the_numbers_are_those_of_a_calculation_by_hand(tmp_path: Path) -> None:
    top = ranked(make_task(tmp_path))[0]["headline"]
    assert (top["order"], top["reference"], top["n"]) == (["better", "plain"], "plain", 3)
    # 60, 62, 67: mean 63, deviations -3, -1, 4, so their squares 9 + 1 + 16 = 26, by n - 1 = 2: 13
    spread = 13**0.5
    own = top["accuracy"]["plain"]["synthetic"]
    assert (own["mean"], own["n"]) == (pytest.approx(63.0), 3)
    assert own["std"] == pytest.approx(spread)
    assert [own["low"], own["high"]] == pytest.approx([63 - T * spread / 3**0.5, 63 + T * spread / 3**0.5], abs=1e-4)
    # better minus plain, pair by pair: 2, 1, 6: mean 3, deviations -1, -2, 3, squares 14, by 2: 7
    gain = top["minus_variants"]["better"]["plain"]
    assert [gain["mean"], gain["std"]] == pytest.approx([3.0, 7**0.5])
    assert [gain["low"], gain["high"]] == pytest.approx([3 - T * (7 / 3) ** 0.5, 3 + T * (7 / 3) ** 0.5], abs=1e-4)
    back = top["minus_variants"]["plain"]["better"]
    assert [back["mean"], back["low"]] == pytest.approx([-3.0, -gain["high"]])
    # plain minus k-means beside it: 1, 2, 1: mean 4/3, squares 1/9 + 4/9 + 1/9 = 2/3, by 2: 1/3; beside better: 4, 2, 7
    over = top["minus_arms"]["plain"]["k_means"]
    assert [over["mean"], over["std"], over["n"]] == pytest.approx([4 / 3, (1 / 3) ** 0.5, 3])
    assert [over["low"], over["high"]] == pytest.approx([4 / 3 - T / 3, 4 / 3 + T / 3], abs=1e-4)
    assert top["minus_arms"]["better"]["k_means"]["mean"] == pytest.approx(13 / 3)
    assert top["scores"]["plain"]["synthetic"] == pytest.approx(SCORES["plain"]["synthetic"])


def test_each_fraction_has_its_rows_and_their_average_leaves_out_nearest_neighbours(tmp_path: Path) -> None:
    found = ranked(make_task(tmp_path))[0]
    means = {(r["probe"], r["fraction"]): r["mean"] for r in found["table"] if (r["variant"], r["arm"]) == ("plain", "synthetic")}
    assert means == pytest.approx({("ridge", None): 63.0, ("ridge", 0.01): 48.0, ("ridge", 0.05): 78.0, ("knn", 1.0): 83.0})
    for name, about in (("minus_arms", {"arm": "k_means"}), ("minus_variants", {"other": "plain"})):
        rows = [r for r in found[name] if r["variant"] == "better" and about.items() <= r.items()]
        assert {(r["probe"], r["fraction"]) for r in rows} == set(means)
        assert [r["mean"] for r in rows] == pytest.approx([rows[0]["mean"]] * 4)
        assert all(r["n"] == 3 for r in rows)


def test_networks_are_kept_apart_and_the_headline_averages_them(tmp_path: Path) -> None:
    found = ranked(make_task(tmp_path, networks=("convnet-2x8", "resnet10-8")))[0]
    means = {r["network"]: r["mean"] for r in found["table"] if (r["variant"], r["arm"], r["fraction"]) == ("plain", "synthetic", None)}
    assert means == pytest.approx({"convnet-2x8": 63.0, "resnet10-8": 73.0})
    assert found["headline"]["accuracy"]["plain"]["synthetic"]["mean"] == pytest.approx(68.0)
    assert found["headline"]["accuracy"]["plain"]["synthetic"]["n"] == 3


def test_the_page_and_the_picture_say_what_was_found(tmp_path: Path) -> None:
    found, page = ranked(make_task(tmp_path, validation=0.3))
    assert "| 1 | better | 66.0 ± 6.1 [50.9, 81.1] | +4.3 ± 2.5 [-1.9, +10.6] |" in page
    assert "| plain | -3.0 ± 2.6 [-9.6, +3.6] |  |" in page
    assert "| better minus plain | +3.0" in page
    assert "plain minus better |" not in page
    assert "| 5 | dino 91.0 |" in page
    assert "Scored on 30 % of the training images" in page
    assert "3 distillations of each variant" in page
    assert "Every arm: 20 images, 100 steps of pre-training." in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"ranking.json", "ranking.md", "ranking.png", "ranking.svg"}
    assert found["teachers"][2] == {"variant": "plain", "seed": 5, "ssl": "dino", "knn_accuracy": 91.0}
    again = make_task(tmp_path / "again", validation=0.3)
    make_ranking(again)
    for kind in ("png", "svg", "json", "md"):
        assert (again.out / f"ranking.{kind}").read_bytes() == (tmp_path / "out" / f"ranking.{kind}").read_bytes()


def test_one_distillation_gives_no_interval_and_says_so(tmp_path: Path) -> None:
    found, page = ranked(make_task(tmp_path, distillations=1))
    rows = found["table"] + found["minus_arms"] + found["minus_variants"]
    assert all((row["n"], row["std"], row["low"], row["high"]) == (1, None, None, None) for row in rows)
    assert found["headline"]["minus_variants"]["better"]["plain"]["mean"] == pytest.approx(2.0)
    assert "+2.0 (one seed: no interval)" in page
    assert "**One distillation only: there are no intervals" in page


def test_a_given_teacher_is_not_called_each_distillations_own(tmp_path: Path) -> None:
    assert "each with a teacher of its own. Every arm" in ranked(make_task(tmp_path / "trained"))[1]
    task = make_task(tmp_path / "given")
    for folder in task.inputs["teachers"]:
        (folder / "teacher.json").write_text(json.dumps({"ssl": "given", "knn_accuracy": None}))
    page = ranked(task)[1]
    assert "each with a teacher of its own, but where it was given. Every arm" in page
    assert "no interval covers the luck of it" in page
    assert "Teacher, experts, start" not in page


def test_a_difference_whose_interval_leaves_out_zero_is_bold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORES["plain"], "k_means", [50.0, 52.1, 57.0])
    page = ranked(make_task(tmp_path))[1]
    assert "**+10.0 ± 0.1 [+9.8, +10.1]**" in page


def test_variants_that_differ_in_budget_are_not_compared_in_silence(tmp_path: Path) -> None:
    budgets = {"plain": {"images": 20, "steps": 100}, "better": {"images": 30, "steps": 100}}
    page = ranked(make_task(tmp_path, budgets=budgets))[1]
    assert "**Variants have different budgets**: plain: 20 images, 100 steps of pre-training; better: 30 images" in page


def test_the_summary_is_one_line_for_each_variant(tmp_path: Path) -> None:
    summary = make_ranking(make_task(tmp_path))
    assert (summary["best"], summary["distillations"]) == ("better", 3)
    top = summary["headline"]
    assert top["accuracy"]["plain"]["mean"] == pytest.approx(63.0)
    assert top["minus_reference"]["better"]["mean"] == pytest.approx(3.0)
    assert top["minus_reference"]["plain"] is None
