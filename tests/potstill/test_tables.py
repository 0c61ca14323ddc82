import io
import json
from typing import Any

from rich.console import Console

from potstill.tables import comparisons, gain, ranking_tables, summary, table

SHARED = {"task": "digits-train -> digits-test", "network": "convnet-3-128", "fraction": 0.1, "probe": "ridge"}


def row(arm: str, mean: float, **more: Any) -> dict[str, Any]:
    return {**SHARED, "arm": arm, "mean": mean, "std": 0.5, "n": 24, "low": mean - 0.2, "high": mean + 0.2, **more}


def average(mean: float) -> dict[str, Any]:
    return {"mean": mean, "std": 0.4, "n": 8, "low": mean - 0.2, "high": mean + 0.2}


def pair(arm: str, mean: float, **more: Any) -> dict[str, Any]:
    return {**SHARED, "arm": arm, "against": "synthetic", "mean": mean, "low": mean - 0.3, "high": mean + 0.3, **more}


REPORT = {
    "headline": {
        "task": "digits-train -> digits-test",
        "probe": "ridge",
        "measure": "accuracy in percent, averaged over 1 % and 5 % of the labels",
        "accuracy": {"synthetic": average(70.0), "synthetic_8bit": average(69.9), "random": average(65.0), "none": average(60.0)},
        "synthetic_minus": {"synthetic_8bit": average(0.1), "random": average(5.0), "none": average(10.0)},
    },
    "table": [
        row("synthetic", 95.0, probe="knn", fraction=1.0),
        *(
            row(arm, mean)
            for arm, mean in (("none", 80.0), ("random", 90.0), ("synthetic", 93.5), ("synthetic_8bit", 93.4), ("k_means", 91.0))
        ),
    ],
    "paired": [pair("random", 3.5), pair("k_means", 2.5), pair("none", 13.5)],
    "rounding_cost": [pair("synthetic_8bit", 0.1)],
}


def test_one_table_a_comparison_with_the_arms_in_order() -> None:
    head, knn, ridge = comparisons(REPORT)
    assert "averaged over 1 % and 5 %" in head.title
    assert list(knn.accuracy) == ["synthetic"]
    out = io.StringIO()
    Console(file=out, width=100).print(table(ridge))
    text = out.getvalue()
    names = ("synthetic set  ", "synthetic set, 8 bits", "random images", "k-means images", "no pre-training")
    places = [text.index(name) for name in names]
    assert places == sorted(places)
    assert "10 % of the labels" in text
    (random,) = [line for line in text.splitlines() if "random images" in line]
    assert "90.00 ± 0.50" in random
    assert "24" in random
    assert "+3.50 (+3.20 to +3.80)" in random


def test_one_seed_has_no_interval() -> None:
    assert gain(pair("random", -1.0) | {"low": None, "high": None}) == "-1.00"
    assert gain(None) == ""


def test_summary_is_the_headline_in_percent() -> None:
    made = json.loads(json.dumps(summary(REPORT, 61.234, "potstill-demo/synthetic.safetensors")))
    assert made == {
        "synthetic": {"mean": 70.0, "std": 0.4, "n": 8},
        "random": {"mean": 65.0, "std": 0.4, "n": 8},
        "none": {"mean": 60.0, "std": 0.4, "n": 8},
        "paired_difference_to_random": {"mean": 5.0, "low": 4.8, "high": 5.2},
        "seconds": 61.2,
        "synthetic_set": "potstill-demo/synthetic.safetensors",
    }


def difference(mean: float) -> dict[str, Any]:
    return {"mean": mean, "std": 2.5, "n": 3, "low": mean - 6, "high": mean + 6}


HEADLINE: dict[str, Any] = {
    "places": ["digits-train -> digits-test, convnet-2x8"],
    "probe": "ridge",
    "measure": "accuracy in percent, averaged over 5 % of the labels",
    "n": 3,
    "order": ["better", "plain"],
    "accuracy": {"better": {"synthetic": difference(66.0)}, "plain": {"synthetic": difference(63.0)}},
    "minus_arms": {
        name: {"synthetic_8bit": difference(0.1), "k_means": difference(gain)} for name, gain in (("better", 4.3), ("plain", 1.3))
    },
    "minus_variants": {"better": {"plain": difference(3.0)}, "plain": {"better": difference(-3.0)}},
}


def test_a_ranking_is_a_table_of_gains_and_one_of_pairs() -> None:
    screen = Console(file=io.StringIO(), width=140)
    tables = list(ranking_tables(HEADLINE))
    for one in tables:
        screen.print(one)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "3 distillations of each variant" in shown
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert rows[0] == ["better", "66.00 ± 2.50", "+4.30 (-1.70 to +10.30)"]
    assert rows[3] == ["plain", "-3.00 (-9.00 to +3.00)", ""]
    alone = {name: value for name, value in HEADLINE.items() if name != "order"} | {"order": ["plain"], "n": 1}
    alone["accuracy"] = {"plain": {"synthetic": {"mean": 63.0, "std": None, "n": 1, "low": None, "high": None}}}
    (only,) = ranking_tables(alone)
    assert "one distillation of each" in str(only.title)
