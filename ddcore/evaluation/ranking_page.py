"""A ranking as a page of text: the order, who beats whom, every label fraction, and the teachers."""

from typing import Any

from ddcore.evaluation.markdown import column_of, held_out, label_of, words_of

Row = dict[str, Any]


def ranking_markdown(ranking: dict[str, Any]) -> str:
    """Markdown of what `ranking.make_ranking` gathered."""
    top = ranking["headline"]
    n = top["n"]
    given = "" if _trained(ranking) else ", but where it was given"
    each = f"{n} distillations of each variant, each with a teacher of its own{given}" if n > 1 else "one distillation of each variant"
    parts = [
        "# Variants of a distillation, ranked\n",
        f"{'; '.join(top['places'])}. {top['probe']} probe: {top['measure']}; {each}. {_budgets(ranking['budgets'])}\n",
        "Mean ± standard deviation over distillations [95 % interval of the mean]; differences are paired by distillation. Bold: the"
        " interval leaves out zero.\n",
        _order(top),
    ]
    if len(top["order"]) > 1:
        parts += ["## Row minus column\n", _pairs(top)]
    parts += ["## Accuracy of every arm beside each variant\n", _arms(top)]
    for task, network in dict.fromkeys((row["task"], row["network"]) for row in ranking["table"]):
        here = {
            name: [row for row in ranking[name] if (row["task"], row["network"]) == (task, network)]
            for name in ("table", "minus_arms", "minus_variants")
        }
        parts += [f"## {task}, {network}\n", _by_fraction(here, top["order"])]
    parts += ["## The teachers' k-NN accuracy in percent\n", _teachers(ranking), _notes(ranking)]
    return "\n".join(parts)


def _budgets(budgets: dict[str, dict[str, int]]) -> str:
    said = {variant: f"{own['images']} images, {own['steps']} steps of pre-training" for variant, own in budgets.items()}
    if len(set(said.values())) == 1:
        return f"Every arm: {next(iter(said.values()))}."
    return f"**Variants have different budgets**: {'; '.join(f'{variant}: {words}' for variant, words in said.items())}."


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def difference(row: Row) -> str:
    """The words of a paired difference, bold if its interval leaves out zero."""
    words = words_of(row, sign=True)
    certain = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
    return f"**{words}**" if certain else words


def _order(top: dict[str, Any]) -> str:
    arms = list(next(iter(top["minus_arms"].values())))
    head = ["", "variant", "synthetic set", *(f"minus {label_of(arm)}" for arm in arms)]
    rows = [
        [str(place), variant, words_of(top["accuracy"][variant]["synthetic"]), *(difference(top["minus_arms"][variant][a]) for a in arms)]
        for place, variant in enumerate(top["order"], 1)
    ]
    return _table(head, rows)


def _pairs(top: dict[str, Any]) -> str:
    order = top["order"]
    rows = [[one, *("" if one == other else difference(top["minus_variants"][one][other]) for other in order)] for one in order]
    return _table(["", *order], rows)


def _arms(top: dict[str, Any]) -> str:
    arms = list(next(iter(top["accuracy"].values())))
    rows = [[variant, *(words_of(top["accuracy"][variant][arm]) for arm in arms)] for variant in top["order"]]
    return _table(["variant", *map(label_of, arms)], rows)


def _by_fraction(here: dict[str, list[Row]], order: list[str]) -> str:
    """Rows: each variant, its differences, and those to every variant that does worse; columns: label fractions, and their average."""
    columns = list(dict.fromkeys(map(_column, here["table"])))
    lines: dict[str, dict[str, str]] = {}
    for row in here["table"]:
        if row["arm"] == "synthetic":
            lines.setdefault(row["variant"], {})[_column(row)] = words_of(row)
    for row in here["minus_arms"]:
        lines.setdefault(f"{row['variant']} minus {label_of(row['arm'])}", {})[_column(row)] = difference(row)
    for row in here["minus_variants"]:
        if order.index(row["variant"]) > order.index(row["other"]):
            continue
        lines.setdefault(f"{row['variant']} minus {row['other']}", {})[_column(row)] = difference(row)
    return _table(["", *columns], [[name, *(cells.get(column, "") for column in columns)] for name, cells in lines.items()])


def _column(row: Row) -> str:
    return f"{row['probe']}, averaged" if row["fraction"] is None else column_of(row)


def _teachers(ranking: dict[str, Any]) -> str:
    """One column if all variants follow the same teachers, as a sweep over matching settings has it."""
    found = {(row["seed"], row["variant"]): row for row in ranking["teachers"]}

    def words(row: Row) -> str:
        return f"{row['ssl']}, not measured" if row["knn_accuracy"] is None else f"{row['ssl']} {row['knn_accuracy']:.1f}"

    said = [[words(found[seed, variant]) for variant in ranking["variants"]] for seed in ranking["seeds"]]
    if all(len(set(of_seed)) == 1 for of_seed in said):
        return _table(["seed", "every variant"], [[str(seed), own[0]] for seed, own in zip(ranking["seeds"], said, strict=True)])
    return _table(["seed", *ranking["variants"]], [[str(seed), *own] for seed, own in zip(ranking["seeds"], said, strict=True)])


def _trained(ranking: dict[str, Any]) -> bool:
    """Whether every teacher was trained from its distillation's seed; one that was given is the same for all."""
    return all(row["ssl"] != "given" for row in ranking["teachers"])


def _notes(ranking: dict[str, Any]) -> str:
    if _trained(ranking):
        luck = "  Teacher, experts, start and matching differ from one to the next, so the intervals cover the luck of all of these."
    else:
        luck = "  Experts, start and matching differ from one to the next; a given teacher does not, so no interval covers the luck of it."
    lines = [
        "## How to read this\n",
        "- n counts distillations, never evaluations: a distillation's score is the mean over its evaluations and label draws.",
        luck,
        "- A difference to an arm is taken within a distillation: that arm had the same teacher's targets, number of images, network,",
        "  steps and batches. Its rate is tuned beside each variant, so one arm may score differently beside two variants.",
        "- A difference of variants is paired by the seed of the distillation. Intervals are Student-t, each for itself: among twenty",
        "  comparisons without any effect one is expected to exclude zero.",
    ]
    lines += held_out(ranking)
    if ranking["headline"]["n"] == 1:
        lines.append("- **One distillation only: there are no intervals, and no claim can rest on these numbers.**")
    return "\n".join(lines) + "\n"
