"""Variants of a distillation ranked: means over independent distillations, and differences paired by distillation."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from ddcore.evaluation.ranking_figure import draw_ranking
from ddcore.evaluation.ranking_page import ranking_markdown
from ddcore.evaluation.report import percentages
from ddcore.evaluation.statistics import estimate, paired
from ddcore.task import Task

Record = dict[str, Any]
Row = dict[str, Any]
Place = tuple[str, str, str, float | None]  # task, network, probe, label fraction; None: averaged over all fractions
Scores = dict[str, dict[str, dict[int, float]]]  # variant -> arm -> seed of the distillation -> accuracy in percent

OURS = "synthetic"


def make_ranking(task: Task) -> dict[str, Any]:
    """Step `ranking`: writes ranking.json, ranking.md and ranking.png, .svg, .json.

    A distillation's score is the mean over its cells; n counts distillations, and differences are paired by their seed, so by teacher.
    Inputs `cells` and `teachers` lie in the order of seeds, within these of variants; cells, within these, of networks.
    """
    params, records = task.params, _read_cells(task)
    scores = scores_by_place(records)
    ranking = {
        "variants": params["variants"],
        "seeds": params["seeds"],
        "tasks": params["tasks"],
        "budgets": params["budgets"],
        **({"validation": params["validation"]} if "validation" in params else {}),
        "headline": headline(scores),
        "table": [row for place, of in scores.items() for row in accuracies(place, of)],
        "minus_arms": [row for place, of in scores.items() for row in minus_arms(place, of)],
        "minus_variants": [row for place, of in scores.items() for row in minus_variants(place, of)],
        "teachers": _teachers(task),
    }
    draw_ranking(ranking, task.out)
    (task.out / "ranking.md").write_text(ranking_markdown(ranking))
    return _summary(ranking["headline"])


def _summary(top: dict[str, Any]) -> dict[str, Any]:
    """A line for each variant; the pairs of all variants are in ranking.json alone."""
    about = {name: top[name] for name in ("probe", "measure", "order", "reference", "n")}
    accuracy = {variant: top["accuracy"][variant][OURS] for variant in top["order"]}
    gains = {variant: top["minus_variants"][variant].get(top["reference"]) for variant in top["order"]}
    return {"best": top["order"][0], "distillations": top["n"], "headline": about | {"accuracy": accuracy, "minus_reference": gains}}


def _read_cells(task: Task) -> list[Record]:
    """Every record of every cell, with its variant, the seed of its distillation, and the names of its task and network."""
    params, folders, records = task.params, iter(task.inputs["cells"]), list[Record]()
    distillations = [(seed, variant) for seed in params["seeds"] for variant in params["variants"]]
    each = len(task.inputs["cells"]) // (len(distillations) * params["networks"])
    for seed, variant in distillations:
        for network in range(params["networks"]):
            for _ in range(each):
                found = json.loads((next(folders) / "scores.json").read_text())["records"]
                records += [one | {"variant": variant, "distillation": seed, "place": network} for one in found]
    names: defaultdict[int, set[str]] = defaultdict(set)
    for record in records:
        names[record["place"]].add(record["network"])
    for record in records:
        own = names[record["place"]]
        record["task"] = params["tasks"][record["task"]]
        record["network"] = record["network"] if len(own) == 1 else "each variant's own student"
    return records


def scores_by_place(records: list[Record]) -> dict[Place, Scores]:
    """Each distillation's score at every task, network, probe and label fraction: the mean over its evaluations and label draws.

    Where a probe was fitted at several fractions there is one place more, their average, in which each counts the same.
    """
    found: defaultdict[Place, defaultdict[tuple[str, str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in records:
        place = (r["task"], r["network"], r["probe"], r["fraction"])
        found[place][r["variant"], r["arm"], r["distillation"]].append(r["accuracy"])
    scores = {place: _nested({who: fmean(values) for who, values in of.items()}) for place, of in found.items()}
    alike: defaultdict[tuple[str, str, str], list[Scores]] = defaultdict(list)
    for (task, network, probe, _), of in scores.items():
        alike[task, network, probe].append(of)
    averages: dict[Place, Scores] = {(*key, None): _mean(several) for key, several in alike.items() if len(several) > 1}
    return averages | scores


def _nested(flat: Mapping[tuple[str, str, int], float]) -> Scores:
    scores: Scores = {}
    for (variant, arm, seed), value in flat.items():
        scores.setdefault(variant, {}).setdefault(arm, {})[seed] = value
    return scores


def _mean(several: list[Scores]) -> Scores:
    """The mean of each distillation's scores, paired by distillation and arm."""
    first = several[0]
    return {v: {a: {s: fmean(one[v][a][s] for one in several) for s in first[v][a]} for a in first[v]} for v in first}


def headline(scores: Mapping[Place, Scores]) -> dict[str, Any]:
    """One number for each distillation, and the variants in the order of its mean.

    That number is the linear probe's accuracy averaged over label fractions, then over networks and tasks: fixed beforehand, so that
    nothing can be picked for its result. The reference is the variant that was named first. Raises `ValueError` if the seeds of two
    variants differ.
    """
    linear = {place: of for place, of in scores.items() if place[2] != "knn"}
    fractions = sorted({place[3] for place in linear if place[3] is not None})
    whole = [of for place, of in linear.items() if place[3] is None or len(fractions) == 1]
    of = _mean(whole)
    order = sorted(of, key=lambda variant: -fmean(of[variant][OURS].values()))
    return {
        "probe": next(iter(linear))[2],
        "measure": f"accuracy in percent, averaged over {percentages(fractions)} of the labels",
        "places": list(dict.fromkeys(f"{task}, {network}" for task, network, _, _ in linear)),
        "order": order,
        "reference": next(iter(of)),
        "n": len(next(iter(of.values()))[OURS]),
        "accuracy": {v: {arm: estimate(list(own.values())).fields() for arm, own in of[v].items()} for v in order},
        "minus_arms": {v: {arm: paired(of[v][OURS], own).fields() for arm, own in of[v].items() if arm != OURS} for v in order},
        "minus_variants": {v: {other: paired(of[v][OURS], of[other][OURS]).fields() for other in order if other != v} for v in order},
        "scores": {v: {arm: list(own.values()) for arm, own in of[v].items()} for v in order},
    }


def accuracies(place: Place, of: Scores) -> Iterator[Row]:
    """One row for each variant and arm: its accuracy's estimate over distillations."""
    for variant, arms in of.items():
        for arm, own in arms.items():
            yield _at(place) | {"variant": variant, "arm": arm} | estimate(list(own.values())).fields()


def minus_arms(place: Place, of: Scores) -> Iterator[Row]:
    """One row for each variant and other arm: synthetic minus that arm, which saw the same teacher's targets and was scored beside it."""
    for variant, arms in of.items():
        for arm, own in arms.items():
            if arm != OURS:
                yield _at(place) | {"variant": variant, "arm": arm} | paired(arms[OURS], own).fields()


def minus_variants(place: Place, of: Scores) -> Iterator[Row]:
    """One row for each pair of variants: the first's synthetic set minus the second's."""
    for variant, arms in of.items():
        for other, theirs in of.items():
            if other != variant:
                yield _at(place) | {"variant": variant, "other": other} | paired(arms[OURS], theirs[OURS]).fields()


def _at(place: Place) -> Row:
    return dict(zip(("task", "network", "probe", "fraction"), place, strict=True))


def _teachers(task: Task) -> list[Row]:
    """What is known of each distillation's teacher: its kind, and its k-NN accuracy in percent if it was measured."""
    who = [(seed, variant) for seed in task.params["seeds"] for variant in task.params["variants"]]
    rows = []
    for (seed, variant), folder in zip(who, task.inputs["teachers"], strict=True):
        known = json.loads((folder / "teacher.json").read_text())
        rows.append({"variant": variant, "seed": seed, "ssl": known["ssl"], "knn_accuracy": known.get("knn_accuracy")})
    return rows
