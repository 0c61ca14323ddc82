"""The report as a page of text: one table for each task and network, arms as rows, label fractions as columns."""

from typing import Any

from ddcore.evaluation.statistics import Estimate
from ddcore.observatory.canvas import ARMS

Row = dict[str, Any]


def report_markdown(report: dict[str, Any]) -> str:
    """Markdown of what `report.make_report` gathered."""
    parts = ["# Evaluation of a synthetic set\n", _headline(report["headline"]), _facts(report)]
    for task, network in dict.fromkeys((row["task"], row["network"]) for row in report["table"]):
        parts.append(f"## {task}, {network}\n")
        parts.append("Accuracy in percent: mean ± standard deviation over seeds [95 % interval of the mean].\n")
        parts.append(_table([row for row in report["table"] if (row["task"], row["network"]) == (task, network)]))
        rows = [row for row in report["paired"] + report["rounding_cost"] if (row["task"], row["network"]) == (task, network)]
        if rows:
            parts.append("Synthetic minus each arm, paired by seed; an interval above zero speaks for the synthetic set.\n")
            parts.append(_table(rows, sign=True))
    parts.append(_notes(report))
    return "\n".join(parts)


def words_of(row: Row, sign: bool = False) -> str:
    return Estimate(row["mean"], row["std"], row["n"], row["low"], row["high"]).words(sign)


def label_of(arm: str) -> str:
    return ARMS[arm][0] if arm in ARMS else arm


def column_of(row: Row) -> str:
    """Such as `ridge, 10 %`; k-NN always reads all labels."""
    return "k-NN" if row["probe"] == "knn" else f"{row['probe']}, {100 * row['fraction']:g} %"


def _table(rows: list[Row], sign: bool = False) -> str:
    columns = list(dict.fromkeys(column_of(row) for row in rows))
    cells = {(row["arm"], column_of(row)): words_of(row, sign) for row in rows}
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = [f"| {'minus' if sign else 'pre-trained on'} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {label_of(arm)} | {' | '.join(cells.get((arm, column), '') for column in columns)} |" for arm in arms]
    return "\n".join(lines) + "\n"


def _headline(headline: dict[str, Any]) -> str:
    lines = [f"{headline['task']}, {headline['network']}, {headline['probe']} probe: {headline['measure']}.\n"]
    lines += ["| pre-trained on | accuracy | synthetic minus it |", "|---|---|---|"]
    for arm, row in headline["accuracy"].items():
        gain = headline["synthetic_minus"].get(arm)
        lines.append(f"| {label_of(arm)} | {words_of(row)} | {words_of(gain, sign=True) if gain else ''} |")
    return "\n".join(lines) + "\n"


def _facts(report: dict[str, Any]) -> str:
    data, teacher = report["set"], report["teacher"]
    low, high = data.get("image_range", (0.0, 1.0))
    lines = [
        f"- {data['num_images']} images of shape {'x'.join(map(str, data['image_shape']))}, {data['target_dim']} target dimensions;"
        f" pixels from {low:.3g} to {high:.3g} where an 8-bit file holds 0 to 1.",
        f"- Learned rate {data['learned_lr']:.4g}{_by_layer(data)}.",
    ]
    if teacher.get("knn_accuracy") is not None:
        lines.append(f"- The teacher ({teacher['ssl']}) has a k-NN accuracy of {teacher['knn_accuracy']:.1f} %.")
    for arm, rate in report["rates"].items():
        tried = ", ".join(f"{one:.3g}: {'diverged' if score is None else f'{score:.1f}'}" for one, score in report["scores_of_tuning"][arm])
        lines.append(f"- {label_of(arm)}: rate {rate:.4g}, chosen on a validation split of training images (rate: accuracy; {tried}).")
    return "\n".join(lines) + "\n"


def _by_layer(data: dict[str, Any]) -> str:
    rates = data.get("learned_lrs")
    if rates is None:
        return ""
    spread = f", the geometric mean of {len(rates)} layers' rates from {min(rates):.3g} to {max(rates):.3g}"
    if own := ", ".join(data["networks_by_layer"]):
        return f"{spread}; on the synthetic set {own} pre-trained at the layers' own, any other network at the mean"
    return f"{spread}; no network here pre-trained at the layers' own"


def _notes(report: dict[str, Any]) -> str:
    seeds = max(row["n"] for row in report["table"])
    lines = [
        "## How to read this\n",
        f"- {seeds} seed{'s' if seeds > 1 else ''}. A seed draws the initialisation, the order of batches, the labels, and the images of",
        "  the random and k-means arms; the synthetic and high-loss sets are the same for all seeds, so the intervals do not",
        "  cover the luck of one distillation.",
        "- Label draws are averaged within a seed before anything else, so n counts seeds.",
        "- All arms have the same teacher's targets, number of images, network, steps and batches. Intervals are Student-t, each for",
        "  itself: among twenty comparisons without any effect one is expected to exclude zero.",
    ]
    lines += held_out(report)
    if seeds == 1:
        lines.append("- **One seed only: there are no intervals, and no claim can rest on these numbers.**")
    return "\n".join(lines) + "\n"


def held_out(report: dict[str, Any]) -> list[str]:
    """The note of a report whose scores are for choosing settings; none of one that read the test split."""
    if "validation" not in report:
        return []
    share = f"{100 * report['validation']:g} %"
    held = f"- Scored on {share} of the training images, held out from probes and tuning"
    return [f"{held} (distillation saw them, without labels); test images were not read."]
