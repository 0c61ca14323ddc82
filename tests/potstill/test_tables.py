import io
import json
from typing import Any

from rich.console import Console

from potstill.tables import comparisons, gain, summary, table

SHARED = {"task": "digits-train -> digits-test", "network": "convnet-3-128", "fraction": 0.1, "probe": "ridge"}


def row(arm: str, mean: float, **more: Any) -> dict[str, Any]:
    return {**SHARED, "arm": arm, "mean": mean, "std": 0.5, "n": 24, "low": mean - 0.2, "high": mean + 0.2, **more}


def pair(arm: str, mean: float, **more: Any) -> dict[str, Any]:
    return {**SHARED, "arm": arm, "against": "synthetic", "mean": mean, "low": mean - 0.3, "high": mean + 0.3, **more}


REPORT = {
    "table": [
        row("synthetic", 95.0, probe="knn", fraction=1.0),
        *(
            row(arm, mean)
            for arm, mean in (("none", 80.0), ("random", 90.0), ("synthetic", 93.5), ("synthetic_8bit", 93.4), ("k_means", 91.0))
        ),
    ],
    "paired": [pair("random", 3.5), pair("k_means", 2.5), pair("none", 13.5)],
}


def test_one_table_a_comparison_with_the_arms_in_order() -> None:
    knn, ridge = comparisons(REPORT)
    assert [r["arm"] for r in knn[1]] == ["synthetic"]
    assert [r["arm"] for r in ridge[1]] == ["synthetic", "synthetic_8bit", "random", "k_means", "none"]
    out = io.StringIO()
    Console(file=out, width=100).print(table(*ridge))
    text = out.getvalue()
    assert "10 % of the labels" in text
    (random,) = [line for line in text.splitlines() if "random images" in line]
    assert "90.00 ± 0.50" in random
    assert "24" in random
    assert "+3.50 (+3.20 to +3.80)" in random


def test_one_seed_has_no_interval() -> None:
    assert gain(pair("random", -1.0) | {"low": None, "high": None}) == "-1.00"
    assert gain(None) == ""


def test_summary_is_the_linear_probe_in_percent() -> None:
    made = json.loads(json.dumps(summary(REPORT, 61.234, "potstill-demo/synthetic.safetensors")))
    assert made == {
        "synthetic": {"mean": 93.5, "std": 0.5, "n": 24},
        "random": {"mean": 90.0, "std": 0.5, "n": 24},
        "k_means": {"mean": 91.0, "std": 0.5, "n": 24},
        "none": {"mean": 80.0, "std": 0.5, "n": 24},
        "paired_difference_to_random": {"mean": 3.5, "low": 3.2, "high": 3.8},
        "seconds": 61.2,
        "synthetic_set": "potstill-demo/synthetic.safetensors",
    }
