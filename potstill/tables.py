"""A report as a person reads it: one table of arms or of variants, and the small summary that the demo writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table

ARMS = {
    "synthetic": "synthetic set",
    "synthetic_8bit": "synthetic set, 8 bits",
    "random": "random images",
    "k_means": "k-means images",
    "high_loss": "high-loss images",
    "none": "no pre-training",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Arms that differ in nothing else: their accuracies by arm, and what the synthetic set gains on each."""

    title: str
    accuracy: dict[str, Row]
    gains: dict[str, Row]


def comparisons(report: dict[str, Any]) -> list[Comparison]:
    """The report's headline, then its table cut into one comparison for each task, network, fraction of labels and probe."""
    head = report["headline"]
    found = [Comparison(f"{head['task']}: {head['probe']} probe, {head['measure']}", head["accuracy"], head["synthetic_minus"])]
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in report["table"]:
        groups.setdefault(_key(row), {})[row["arm"]] = row
    for key, rows in groups.items():
        gains = {pair["arm"]: pair for pair in (*report["paired"], *report["rounding_cost"]) if _key(pair) == key}
        found.append(Comparison(_title(next(iter(rows.values()))), rows, gains))
    return found


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("task", "network", "fraction", "probe"))


def _title(row: Row) -> str:
    labels = "all labels" if row["probe"] == "knn" or row["fraction"] == 1 else f"{100 * row['fraction']:g} % of the labels"
    return f"{row['task']}, {row['network']}: {row['probe']} on {labels}"


def table(comparison: Comparison) -> Table:
    """Accuracies of one comparison, each beside what the synthetic set gains on it."""
    out = Table(title=comparison.title, title_justify="left", title_style="bold")
    out.add_column("pre-trained on")
    for name in ("accuracy %", "n", "synthetic gains (95 % interval)"):
        out.add_column(name, justify="right", no_wrap=True)
    for arm in sorted(comparison.accuracy, key=list(ARMS).index):
        row = comparison.accuracy[arm]
        accuracy = f"{row['mean']:.2f}" + (f" ± {row['std']:.2f}" if row["std"] is not None else "")
        out.add_row(ARMS[arm], accuracy, str(row["n"]), gain(comparison.gains.get(arm)))
    return out


def ranking_tables(head: dict[str, Any]) -> Iterator[Table]:
    """A sweep's variants, best first: what each gains on the baselines beside it, then on each other variant."""
    distillations = "one distillation" if head["n"] == 1 else f"{head['n']} distillations"
    title = f"{'; '.join(head['places'])}: {head['probe']} probe, {head['measure']}; {distillations} of each variant"
    arms = [arm for arm in ARMS if arm in head["minus_arms"][head["order"][0]] and arm != "synthetic_8bit"]
    out = _beside(title, ["variant", "accuracy %", *(f"gain on {ARMS[arm]}" for arm in arms)])
    for variant in head["order"]:
        own = head["accuracy"][variant]["synthetic"]
        accuracy = f"{own['mean']:.2f}" + (f" ± {own['std']:.2f}" if own["std"] is not None else "")
        out.add_row(variant, accuracy, *(gain(head["minus_arms"][variant][arm]) for arm in arms))
    yield out
    if len(head["order"]) > 1:
        out = _beside("Row minus column, paired by distillation", ["", *head["order"]])
        for variant in head["order"]:
            out.add_row(variant, *(gain(head["minus_variants"][variant].get(other)) for other in head["order"]))
        yield out


def _beside(title: str, columns: list[str]) -> Table:
    out = Table(title=title, title_justify="left", title_style="bold")
    out.add_column(columns[0])
    for name in columns[1:]:
        out.add_column(name, justify="right")
    return out


def gain(pair: Row | None) -> str:
    """`+1.23 (+0.50 to +1.96)`, or nothing."""
    if pair is None:
        return ""
    interval = f" ({pair['low']:+.2f} to {pair['high']:+.2f})" if pair["low"] is not None else ""
    return f"{pair['mean']:+.2f}{interval}"


def summary(report: dict[str, Any], seconds: float, synthetic_set: str) -> dict[str, Any]:
    """The report's headline in the few numbers of `summary.json`; accuracies in percent."""
    head = report["headline"]
    arms = {arm: _rounded(row, "mean", "std", "n") for arm, row in head["accuracy"].items() if arm != "synthetic_8bit"}
    against_random = _rounded(head["synthetic_minus"]["random"], "mean", "low", "high")
    return {**arms, "paired_difference_to_random": against_random, "seconds": round(seconds, 1), "synthetic_set": synthetic_set}


def _rounded(row: Row, *names: str) -> Row:
    return {name: round(row[name], 3) if isinstance(row[name], float) else row[name] for name in names}
