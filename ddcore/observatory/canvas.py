"""How every figure looks and is saved: one palette, readable type, PNG and SVG that repeat byte for byte, numbers beside them."""

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by people of any colour vision; markers differ too, for print in grey.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
INK, QUIET, GRID = "#222222", "#666666", "#DDDDDD"
ARMS = {
    "synthetic": ("synthetic", RED, "o"),
    "synthetic_8bit": ("synthetic, 8-bit", ORANGE, "D"),
    "random": ("random images", BLUE, "s"),
    "k_means": ("k-means images", GREEN, "^"),
    "high_loss": ("high-loss images", PURPLE, "v"),
    "none": ("no pre-training", QUIET, "X"),
}
DPI = 150

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11.0,
    "axes.titlesize": 13.0,
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "axes.labelsize": 11.0,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "legend.fontsize": 10.0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "potstill",
    "svg.fonttype": "path",
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of the given size in inches, bound to no window and no global state."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style() -> Any:
    """A context in which figures take the project's look; the global settings are restored behind it."""
    return matplotlib.rc_context(STYLE)


def grid(axes: Axes) -> None:
    axes.grid(True, color=GRID, linewidth=0.8)


def save_figure(figure: Figure, folder: Path, name: str, numbers: dict[str, Any]) -> None:
    """Write name.png, name.svg and name.json (the numbers drawn); equal numbers give equal bytes. Call it inside `style()`."""
    figure.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": "potstill"})
    (folder / f"{name}.json").write_text(json.dumps(numbers, indent=1, allow_nan=False))
