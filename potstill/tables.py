"""A report as a person reads it: one table of arms, and the small summary that the demo writes."""

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
KEYS = ("task", "network", "fraction", "probe")

Row = dict[str, Any]


def comparisons(report: dict[str, Any]) -> list[tuple[dict[str, Any], list[Row], dict[str, Row]]]:
    """The report cut into comparisons of arms that differ in nothing else: (what they share, rows, paired difference by arm)."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in report["table"]:
        groups.setdefault(_key(row), []).append(row)
    found = []
    for key, rows in groups.items():
        paired = {pair["arm"]: pair for pair in report["paired"] if _key(pair) == key}
        order = [arm for arm in ARMS if any(row["arm"] == arm for row in rows)]
        found.append((dict(zip(KEYS, key, strict=True)), sorted(rows, key=lambda row: order.index(row["arm"])), paired))
    return found


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] if not isinstance(row[name], dict) else str(row[name]) for name in KEYS)


def table(shared: dict[str, Any], rows: list[Row], paired: dict[str, Row]) -> Table:
    """Accuracies of one comparison, each beside what the synthetic set gains on it."""
    labels = "all labels" if shared["probe"] == "knn" or shared["fraction"] == 1 else f"{100 * shared['fraction']:g} % of the labels"
    out = Table(title=f"{shared['task']}: {shared['probe']} on {labels}", title_justify="left", title_style="bold")
    out.add_column("pre-trained on")
    for name in ("accuracy %", "n", "synthetic gains (95 % interval)"):
        out.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        accuracy = f"{row['mean']:.2f}" + (f" ± {row['std']:.2f}" if row["std"] is not None else "")
        out.add_row(ARMS.get(row["arm"], row["arm"]), accuracy, str(row["n"]), gain(paired.get(row["arm"])))
    return out


def gain(pair: Row | None) -> str:
    """`+1.23 (+0.50 to +1.96)`, or nothing."""
    if pair is None:
        return ""
    interval = f" ({pair['low']:+.2f} to {pair['high']:+.2f})" if pair["low"] is not None else ""
    return f"{pair['mean']:+.2f}{interval}"


def summary(report: dict[str, Any], seconds: float, synthetic_set: str) -> dict[str, Any]:
    """The report's first comparison by linear probe, in the few numbers of `summary.json`; accuracies in percent."""
    _, rows, paired = next(one for one in comparisons(report) if one[0]["probe"] != "knn")
    arms = {row["arm"]: _rounded(row, "mean", "std", "n") for row in rows if row["arm"] != "synthetic_8bit"}
    against_random = _rounded(paired["random"], "mean", "low", "high")
    return {**arms, "paired_difference_to_random": against_random, "seconds": round(seconds, 1), "synthetic_set": synthetic_set}


def _rounded(row: Row, *names: str) -> Row:
    return {name: round(row[name], 3) if isinstance(row[name], float) else row[name] for name in names}
