"""The report as a picture: a dot and an interval for each arm at each label fraction."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ddcore.evaluation.markdown import column_of, label_of
from ddcore.observatory.canvas import ARMS, QUIET, grid, new_figure, save_figure, style

Row = dict[str, Any]


def draw_comparison(report: dict[str, Any], folder: Path) -> None:
    """Write comparison.png, .svg and .json: one panel for each task and network."""
    panels = list(dict.fromkeys((row["task"], row["network"]) for row in report["table"]))
    with style():
        columns = max(len({column_of(r) for r in report["table"] if (r["task"], r["network"]) == panel}) for panel in panels)
        figure = new_figure(max(7.0, 1.7 * columns + 2.0), 4.4 * len(panels) + 0.7)
        figure.suptitle("How well do features do after pre-training on each set?", x=0.01, ha="left", fontsize=14)
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(len(panels), 1, number + 1)
            rows = [row for row in report["table"] if (row["task"], row["network"]) == panel]
            _panel(axes, panel, rows, "validation" if "validation" in report else "test")
        arms = list(dict.fromkeys(row["arm"] for row in report["table"]))
        marks = [Line2D([], [], color=ARMS[arm][1], marker=ARMS[arm][2], linestyle="", label=label_of(arm)) for arm in arms]
        figure.legend(handles=marks, loc="outside lower center", ncols=min(3, len(arms)))
        save_figure(figure, folder, "comparison", {"rows": report["table"]})


def _panel(axes: Axes, panel: tuple[str, str], rows: list[Row], split: str) -> None:
    columns = list(dict.fromkeys(column_of(row) for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    for row in rows:
        _, colour, marker = ARMS[row["arm"]]
        place = columns.index(column_of(row)) + 0.7 * ((arms.index(row["arm"]) + 0.5) / len(arms) - 0.5)
        if row["low"] is not None:
            axes.plot([place, place], [row["low"], row["high"]], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot([place], [row["mean"]], color=colour, marker=marker, markersize=7, markeredgecolor="white", markeredgewidth=0.6)
    for edge in range(1, len(columns)):
        axes.axvline(edge - 0.5, color=QUIET, linewidth=0.5, alpha=0.4)
    seeds = max(row["n"] for row in rows)
    axes.set_title(f"{panel[0]}, {panel[1]}", fontsize=11)
    axes.set_xticks(range(len(columns)), [_tick(column) for column in columns])
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_xlabel("how the features were read, and share of training images with a label")
    axes.set_ylabel(f"{split} accuracy (%)\n" + (f"bars: 95 % interval, {seeds} seeds" if seeds > 1 else "one seed: no intervals"))
    grid(axes)
    axes.grid(False, axis="x")


def _tick(column: str) -> str:
    return "nearest neighbours\n100 %" if column == "k-NN" else column.replace(", ", " probe\n")
