"""A ranking as a picture: every distillation's score, and how far each variant is ahead of the baselines and of the first variant."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ddcore.evaluation.markdown import label_of
from ddcore.observatory.canvas import ARMS, INK, QUIET, RED, grid, new_figure, save_figure, style

Row = dict[str, Any]
LINE = 0.62  # inches a variant takes


def draw_ranking(ranking: dict[str, Any], folder: Path) -> None:
    """Write ranking.png and .svg of the headline, and the whole of what `ranking.make_ranking` gathered as ranking.json."""
    headline = ranking["headline"]
    order, n = headline["order"], headline["n"]
    arms = [arm for arm in next(iter(headline["minus_arms"].values())) if arm != "synthetic_8bit"]
    panels = 1 + bool(arms) + (len(order) > 1)
    with style():
        figure = new_figure(1.6 + 4.6 * panels, 3.0 + LINE * len(order))
        measured = f"{'; '.join(headline['places'])}. {headline['probe']} probe: {headline['measure']}"
        figure.suptitle(f"Which variant distils the better set?\n{measured}", x=0.01, ha="left", fontsize=12)
        axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0].tolist()
        _accuracies(axes[0], headline, "validation" if "validation" in ranking else "test")
        if arms:
            rows = {variant: {arm: headline["minus_arms"][variant][arm] for arm in arms} for variant in order}
            _differences(axes[1], rows, {arm: (ARMS[arm][1], ARMS[arm][2]) for arm in arms})
            axes[1].set_title("minus each baseline beside it")
            marks = [Line2D([], [], color=ARMS[arm][1], marker=ARMS[arm][2], linestyle="", label=f"minus {label_of(arm)}") for arm in arms]
            figure.legend(handles=marks, loc="outside lower center", ncols=min(4, len(arms)))
        if len(order) > 1:
            first = headline["reference"]
            gains = {v: {first: row[first]} if v != first else {} for v, row in headline["minus_variants"].items()}
            _differences(axes[-1], gains, {first: (INK, "o")})
            axes[-1].set_title(f"minus {first}")
        axes[0].set_yticks(range(len(order)), order)
        axes[0].set_ylim(len(order) - 0.5, -0.5)
        bars = f"bars: 95 % interval over {n} distillations" if n > 1 else "one distillation of each: no intervals"
        for one in axes[1:]:
            one.set_xlabel(f"percentage points; {bars}")
        save_figure(figure, folder, "ranking", ranking)


def _accuracies(axes: Axes, headline: dict[str, Any], split: str) -> None:
    for place, variant in enumerate(headline["order"]):
        own = headline["scores"][variant]["synthetic"]
        axes.plot(own, [place + 0.22] * len(own), color=QUIET, marker="o", markersize=4, linestyle="", alpha=0.5, markeredgewidth=0)
        _dot(axes, headline["accuracy"][variant]["synthetic"], place, RED, "o")
    axes.set_title("accuracy of the synthetic set")
    axes.set_xlabel(f"{split} accuracy (%); grey: each distillation")
    grid(axes)


def _differences(axes: Axes, rows: Mapping[str, Mapping[str, Row]], looks: Mapping[str, tuple[str, str]]) -> None:
    axes.axvline(0, color=INK, linewidth=1)
    for place, own in enumerate(rows.values()):
        for number, (name, row) in enumerate(own.items()):
            _dot(axes, row, place + 0.7 * ((number + 0.5) / len(own) - 0.5), *looks[name])
    grid(axes)


def _dot(axes: Axes, row: Row, place: float, colour: str, marker: str) -> None:
    if row["low"] is not None:
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot([row["mean"]], [place], color=colour, marker=marker, markersize=7, markeredgecolor="white", markeredgewidth=0.6)
