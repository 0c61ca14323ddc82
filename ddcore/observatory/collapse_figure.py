"""A monitor of DINO's health: four curves, each with a region in red that is a sign of collapse."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ddcore.observatory.canvas import BLUE, GREEN, INK, ORANGE, QUIET, RED, grid, new_figure, save_figure, style
from ddcore.ssl.collapse import NEARLY, collapse_of
from ddcore.ssl.measure import LEAST_RANK

Curve = Sequence[Sequence[float]]  # [[step, value], ...]

VERDICTS = {
    "uniform": "collapsed: every prototype is equally likely for every image",
    "single": "collapsed: single prototypes, and nothing left to learn",
    "rank": "collapsed: nearly the same features for every image",
    None: "no sign of collapse at the end",
}


def draw_collapse(
    history: Mapping[str, Curve], features: Sequence[Mapping[str, Any]], out_dim: int, chance: float | None, folder: Path
) -> str | None:
    """collapse: entropy and divergence of DINO's outputs, rank and k-NN accuracy of the teacher's features; returns the verdict's key.

    history: with `entropy` and `kl` of the training steps, nats. features: rows of `ddcore.observatory.snapshots.per_snapshot`.
    out_dim: prototypes. chance: accuracy in percent of always naming the most frequent class, None without labels.
    """
    rows = [row for row in features if row["network"] == "teacher"]
    verdict: str | None = collapse_of(history["entropy"][-1][1], history["kl"][-1][1], out_dim)
    if rows[-1]["rank"] < LEAST_RANK:
        verdict = "rank"
    with style():
        figure = new_figure(12.0, 8.0)
        figure.suptitle(
            f"Has the teacher collapsed? Red regions are signs of it. This one: {VERDICTS[verdict]}", x=0.01, ha="left", fontsize=14
        )
        panels = [figure.add_subplot(2, 2, number) for number in range(1, 5)]
        _entropy(panels[0], history["entropy"], math.log(out_dim), out_dim)
        _divergence(panels[1], history["kl"], math.log(out_dim))
        _rank(panels[2], rows)
        if chance is None:
            figure.delaxes(panels.pop())
        else:
            _neighbours(panels[3], rows, chance)
        for axes in panels:
            axes.set_xlabel("training step")
            grid(axes)
        drawn = {name: history[name] for name in ("entropy", "kl")}
        save_figure(figure, folder, "collapse", {**drawn, "out_dim": out_dim, "chance": chance, "teacher": rows, "verdict": verdict})
    return verdict


def _entropy(axes: Axes, curve: Curve, largest: float, out_dim: int) -> None:
    axes.plot(*zip(*curve, strict=True), color=BLUE)
    axes.axhline(largest, color=INK, linestyle="--", linewidth=1.2)
    axes.set_ylim(-0.04 * largest, 1.18 * largest)
    _danger(axes, (1 - NEARLY) * largest, 1.18 * largest, f"log {out_dim} = {largest:.2f}: all prototypes equally likely")
    _danger(axes, -0.04 * largest, NEARLY * largest, "one prototype for an image: a collapse where all images share it")
    axes.set_title("How undecided is the teacher about an image?")
    axes.set_ylabel("entropy of its output (nats)")


def _divergence(axes: Axes, curve: Curve, largest: float) -> None:
    axes.plot(*zip(*curve, strict=True), color=BLUE)
    top = 1.1 * max(*(value for _, value in curve), 5 * NEARLY * largest)
    axes.set_ylim(-0.04 * top, top)
    _danger(axes, -0.04 * top, NEARLY * largest, "nothing left to learn")
    axes.set_title("How far is the student from the teacher's answer?")
    axes.set_ylabel("KL divergence (nats)")


def _rank(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.plot([row["step"] for row in rows], [row["rank"] for row in rows], color=ORANGE, marker="s", markersize=5)
    top = 1.1 * max(4 * LEAST_RANK, *(row["rank"] for row in rows))
    axes.set_ylim(0, top)
    _danger(axes, 0, LEAST_RANK, "nearly the same features for every image")
    axes.set_title("How many directions do its features use?")
    axes.set_ylabel("effective rank")


def _neighbours(axes: Axes, rows: Sequence[Mapping[str, Any]], chance: float) -> None:
    axes.plot([row["step"] for row in rows], [row["knn"] for row in rows], color=GREEN, marker="o", markersize=5)
    axes.set_ylim(0, 103)
    _danger(axes, 0, chance, f"{chance:.0f} %: the same class for every image")
    axes.set_title("Do neighbours share a class?")
    axes.set_ylabel("k-NN accuracy (percent)")


def _danger(axes: Axes, low: float, high: float, words: str) -> None:
    axes.axhspan(low, high, color=RED, alpha=0.18, linewidth=0, zorder=0)
    axes.annotate(
        words, (0.99, high), xycoords=axes.get_yaxis_transform(), xytext=(0, -3 if "log" in words else 3),
        textcoords="offset points", ha="right", va="top" if "log" in words else "bottom", color=QUIET, fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1},  # a curve may run behind
    )  # fmt: skip
