"""The report of an evaluation: every arm in one table, paired differences, what rounding costs, and a picture of it."""

import json
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from ddcore.evaluation.comparison import draw_comparison
from ddcore.evaluation.markdown import report_markdown
from ddcore.evaluation.statistics import by_seed, estimate, paired
from ddcore.synthetic import FILE, load_synthetic
from ddcore.task import Task

Record = dict[str, Any]
Row = dict[str, Any]

GROUP = ("task", "network", "fraction", "probe")


def make_report(task: Task) -> dict[str, Any]:
    """Step `report`: writes report.json, report.md and comparison.png, .svg, .json.

    Label draws are averaged within a seed; n counts seeds, and differences are paired by seed.
    """
    records: list[Record] = []
    for folder in task.inputs["cells"]:
        records += json.loads((folder / "scores.json").read_text())["records"]
    names = task.params["tasks"]
    for record in records:
        record["task"] = names[record["task"]]
    report = {
        "tasks": names,
        **({"validation": task.params["validation"]} if "validation" in task.params else {}),
        "headline": headline(records),
        "table": table(records),
        "paired": differences(records, [arm for arm in arms_in(records) if not arm.startswith("synthetic")]),
        "rounding_cost": differences(records, [arm for arm in arms_in(records) if arm == "synthetic_8bit"]),
        **_tuning(task),
        "teacher": json.loads((task.input("teacher") / "teacher.json").read_text()),
        "set": _set_facts(task, records),
    }
    (task.out / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False))
    (task.out / "report.md").write_text(report_markdown(report))
    draw_comparison(report, task.out)
    return {"headline": report["headline"], "teacher_knn_accuracy": report["teacher"].get("knn_accuracy"), "rates": report["rates"]}


def arms_in(records: Iterable[Record]) -> list[str]:
    """The arms in the order in which they first appear."""
    return list(dict.fromkeys(record["arm"] for record in records))


def _seeds(records: Iterable[Record], arm: str) -> dict[int, float]:
    return by_seed((record["seed"], record["accuracy"]) for record in records if record["arm"] == arm)


def _groups(records: list[Record]) -> dict[tuple[Any, ...], list[Record]]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in GROUP), []).append(record)
    return groups


def table(records: list[Record]) -> list[Row]:
    """One row for each task, network, fraction, probe and arm: the accuracy's estimate over seeds."""
    rows = []
    for key, group in _groups(records).items():
        place = dict(zip(GROUP, key, strict=True))
        rows += [place | {"arm": arm} | estimate(list(_seeds(group, arm).values())).fields() for arm in arms_in(group)]
    return rows


def differences(records: list[Record], arms: list[str]) -> list[Row]:
    """One row for each group and arm: synthetic minus that arm, paired over seeds."""
    rows = []
    for key, group in _groups(records).items():
        ours, place = _seeds(group, "synthetic"), dict(zip(GROUP, key, strict=True))
        for arm in arms:
            rows.append(place | {"arm": arm, "against": "synthetic"} | paired(ours, _seeds(group, arm)).fields())
    return rows


def headline(records: list[Record]) -> dict[str, Any]:
    """A few numbers that sum up the first task and network: the linear probe's accuracy averaged over label fractions.

    The average is fixed beforehand, so that no fraction can be picked for its result; it is taken within each seed.
    """
    first = records[0]
    chosen = [r for r in records if r["probe"] != "knn" and all(r[name] == first[name] for name in ("task", "network"))]
    fractions = sorted({record["fraction"] for record in chosen})
    scores = {arm: _over_fractions(chosen, arm, fractions) for arm in arms_in(chosen)}
    ours = scores["synthetic"]
    return {
        "task": first["task"],
        "network": first["network"],
        "probe": chosen[0]["probe"],
        "measure": f"accuracy in percent, averaged over {percentages(fractions)} of the labels",
        "fractions": fractions,
        "accuracy": {arm: estimate(list(of_seed.values())).fields() for arm, of_seed in scores.items()},
        "synthetic_minus": {arm: paired(ours, of_seed).fields() for arm, of_seed in scores.items() if arm != "synthetic"},
    }


def _over_fractions(records: list[Record], arm: str, fractions: list[float]) -> dict[int, float]:
    """Each seed's mean over fractions, in which every fraction counts the same whatever its number of draws."""
    each = [_seeds((r for r in records if r["fraction"] == fraction), arm) for fraction in fractions]
    return {seed: fmean(of_seed[seed] for of_seed in each) for seed in each[0]}


def percentages(fractions: list[float]) -> str:
    words = [f"{100 * fraction:g} %" for fraction in fractions]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _tuning(task: Task) -> dict[str, Any]:
    if not task.inputs.get("rates"):
        return {"rates": {}, "scores_of_tuning": {}}
    found = json.loads((task.input("rates") / "rates.json").read_text())
    return {"rates": found["rates"], "scores_of_tuning": found["scores"]}


def _set_facts(task: Task, records: list[Record]) -> dict[str, Any]:
    """learned_lrs, and the networks that pre-trained at them, are there if layers have rates of their own."""
    data = load_synthetic(task.input("set") / FILE)
    by_layer = {"learned_lrs": data.rates, "networks_by_layer": sorted({r["network"] for r in records if r.get("by_layer")})}
    return {
        **data.info,
        "num_images": len(data.images),
        "image_shape": list(data.images.shape[1:]),
        "target_dim": data.targets.shape[1],
        "learned_lr": data.rate,
        **(by_layer if data.rates else {}),
    }
