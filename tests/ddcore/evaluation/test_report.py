"""The report's numbers are those of a hand calculation, its page reads as a table, and its picture repeats byte for byte."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddcore.evaluation.report import differences, headline, make_report, table
from ddcore.events import Reporter
from ddcore.synthetic import SyntheticSet, load_synthetic
from ddcore.task import Task

ARMS = {"synthetic": 8.0, "synthetic_8bit": 7.5, "random": 3.0, "k_means": 5.0, "high_loss": 1.0, "none": 0.0}


def make_records(seeds: int, fractions: tuple[float, ...] = (0.01, 0.1), draws: int = 2) -> list[dict[str, Any]]:
    """Accuracies whose seed and draw effects are shared by all arms, plus a gain of each arm and a little noise."""
    draw, records = np.random.default_rng(0), []
    for seed in range(seeds):
        for fraction in fractions:
            for number in range(draws):
                shared = 50 + 10 * draw.standard_normal() + 100 * fraction
                for arm, gain in ARMS.items():
                    place = {"arm": arm, "task": 0, "network": "convnet-2x8", "seed": seed, "rate": 0.1}
                    accuracy = shared + gain + 0.1 * draw.standard_normal()
                    records.append(place | {"fraction": fraction, "draw": number, "probe": "ridge", "accuracy": accuracy})
        for arm, gain in ARMS.items():
            place = {"arm": arm, "task": 0, "network": "convnet-2x8", "seed": seed, "rate": 0.1}
            records.append(place | {"fraction": 1.0, "draw": 0, "probe": "knn", "accuracy": 60 + gain + seed})
    return records


def make_task(root: Path, records: list[dict[str, Any]], tasks: tuple[str, ...] = ("digits-train -> digits-test",)) -> Task:
    cells = []
    for seed in sorted({record["seed"] for record in records}):
        cells.append(root / f"cell-{seed}")
        cells[-1].mkdir(parents=True)
        own = [record for record in records if record["seed"] == seed]
        (cells[-1] / "scores.json").write_text(json.dumps({"records": own}))
    for name in ("rates", "teacher", "set", "out", "work"):
        (root / name).mkdir()
    tried = [[0.05, 61.0], [0.1, 64.5], [0.2, None]]
    (root / "rates" / "rates.json").write_text(json.dumps({"rates": {"random": 0.1}, "scores": {"random": tried}}))
    (root / "teacher" / "teacher.json").write_text(json.dumps({"ssl": "dino", "knn_accuracy": 91.5}))
    info = {"mean": [0.5], "std": [0.2], "image_range": [-0.3, 1.2]}
    SyntheticSet(torch.rand(4, 1, 8, 8), torch.zeros(4, 3), torch.tensor(0.1), torch.arange(4), info).save(
        root / "set" / "synthetic.safetensors"
    )
    inputs = {"cells": cells, "rates": [root / "rates"], "teacher": [root / "teacher"], "set": [root / "set"]}
    return Task({"tasks": list(tasks)}, inputs, root / "out", root / "work", Reporter(), torch.device("cpu"))


def test_table_counts_seeds_and_pairing_removes_what_arms_share() -> None:
    records = make_records(seeds=4)
    row = next(r for r in table(records) if r["arm"] == "random" and r["fraction"] == 0.1)
    of_seed = [
        np.mean([r["accuracy"] for r in records if (r["arm"], r["fraction"], r["seed"]) == ("random", 0.1, seed)]) for seed in range(4)
    ]
    assert (row["n"], row["mean"]) == (4, pytest.approx(np.mean(of_seed)))
    assert row["std"] == pytest.approx(np.std(of_seed, ddof=1))
    gain = next(r for r in differences(records, ["random"]) if r["fraction"] == 0.1)
    assert gain["mean"] == pytest.approx(5.0, abs=0.2)
    assert gain["std"] < 0.05 * row["std"]
    assert gain["low"] > 0


def test_headline_weighs_fractions_equally_and_leaves_k_nn_out() -> None:
    records = [r for r in make_records(seeds=3) if not (r["fraction"] == 0.1 and r["draw"] == 1)]  # unequal numbers of draws
    found = headline(records)
    means = []
    for fraction in (0.01, 0.1):
        for seed in range(3):
            place = ("k_means", fraction, seed, "ridge")
            means.append(np.mean([r["accuracy"] for r in records if (r["arm"], r["fraction"], r["seed"], r["probe"]) == place]))
    assert found["accuracy"]["k_means"]["mean"] == pytest.approx(np.mean(means))
    assert found["synthetic_minus"]["k_means"]["mean"] == pytest.approx(3.0, abs=0.2)
    assert found["measure"] == "accuracy in percent, averaged over 1 % and 10 % of the labels"


def test_report_files_hold_what_the_contract_says(tmp_path: Path) -> None:
    task = make_task(tmp_path, make_records(seeds=3))
    summary = make_report(task)
    report = json.loads((task.out / "report.json").read_text())
    assert report["tasks"] == ["digits-train -> digits-test"]
    assert {row["task"] for row in report["table"]} == {"digits-train -> digits-test"}
    fields = {"task", "network", "fraction", "probe", "arm", "mean", "std", "n", "low", "high"}
    assert all(row.keys() == fields for row in report["table"])
    assert all(row.keys() == fields | {"against"} for row in report["paired"] + report["rounding_cost"])
    assert {row["arm"] for row in report["paired"]} == {"random", "k_means", "high_loss", "none"}
    assert [row["mean"] for row in report["rounding_cost"]] == pytest.approx([0.5] * 3, abs=0.2)
    assert report["rates"] == {"random": 0.1}
    assert report["set"]["num_images"] == 4
    assert "learned_lrs" not in report["set"]
    assert summary["headline"] == report["headline"]
    page = (task.out / "report.md").read_text()
    for words in ("| random images |", "ridge, 1 %", "k-NN", "diverged", "91.5 %", "pixels from -0.3 to 1.2", "3 seeds"):
        assert words in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines)
    assert {name.name for name in task.out.iterdir()} == {
        "report.json", "report.md", "comparison.png", "comparison.svg", "comparison.json"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("by_layer", "words"), [(True, "convnet-2x8 pre-trained at the layers' own"), (False, "no network here pre-trained at the layers' own")]
)
def test_layers_rates_are_summed_up_and_the_networks_that_used_them_named(tmp_path: Path, by_layer: bool, words: str) -> None:
    records = make_records(seeds=1)
    task = make_task(tmp_path, [r | ({"by_layer": True} if by_layer and r["arm"] == "synthetic" else {}) for r in records])
    path = task.input("set") / "synthetic.safetensors"
    replace(load_synthetic(path), learned_lr=torch.tensor([0.02, 0.1, 0.5])).save(path)
    make_report(task)
    report, page = json.loads((task.out / "report.json").read_text()), (task.out / "report.md").read_text()
    assert report["set"]["learned_lr"] == pytest.approx(0.1)
    assert report["set"]["learned_lrs"] == pytest.approx([0.02, 0.1, 0.5])
    assert "Learned rate 0.1, the geometric mean of 3 layers' rates from 0.02 to 0.5" in page
    assert words in page


def test_figure_repeats_byte_for_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_report(make_task(tmp_path / name, make_records(seeds=2)))
    for kind in ("png", "svg", "json"):
        first, second = ((tmp_path / name / "out" / f"comparison.{kind}").read_bytes() for name in ("a", "b"))
        assert first == second


def test_one_seed_gives_no_interval_and_says_so_everywhere(tmp_path: Path) -> None:
    task = make_task(tmp_path, make_records(seeds=1))
    make_report(task)
    report = json.loads((task.out / "report.json").read_text())
    assert all(row["low"] is None and row["std"] is None and row["n"] == 1 for row in report["table"] + report["paired"])
    page = (task.out / "report.md").read_text()
    assert "One seed only" in page
    assert "one seed: no interval" in page


def test_without_tuning_and_without_other_arms_the_report_stands(tmp_path: Path) -> None:
    records = [record for record in make_records(seeds=2) if record["arm"] == "synthetic"]
    task = make_task(tmp_path, records)
    task.inputs["rates"] = []
    make_report(task)
    report = json.loads((task.out / "report.json").read_text())
    assert report["paired"] == report["rounding_cost"] == []
    assert report["rates"] == {}
