"""A picture of chance in single steps: gradients of batches, without labels and on targets, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from ddcore.observatory.canvas import BLUE, GREEN, INK, PURPLE, QUIET, grid, new_figure, save_figure, style
from ddcore.observatory.trajectories import NAMES


@dataclass(frozen=True)
class Ratios:
    """One curve: what its gradients are of, batches of how many images, at which times, and noise / signal (None: no signal)."""

    name: str
    batch_size: int
    times: Sequence[float]
    ratios: Sequence[float | None]
    end: float  # of the run, in the same unit: its last gradients may share nothing and be left out


def teacher_ratios(ssl: str, batch_size: int, points: Sequence[Sequence[float]], end: int) -> list[Ratios]:
    """Of a teacher's history, over a run of `end` steps; nothing if it compared no gradients."""
    if not points:
        return []
    times, ratios = [step for step, _ in points], [ratio for _, ratio in points]
    return [Ratios(NAMES.get(ssl, ssl).replace("dino", "DINO"), batch_size, times, ratios, end)]


def expert_ratios(found: Mapping[str, Any], batch_size: int) -> list[Ratios]:
    """Of `ddcore.observatory.regression.gradient_scatter`: the encoder, which compares with a teacher's backbone, and everything."""
    names = {"encoder": "expert's encoder, on targets", "all": "expert with its last layer"}
    return [Ratios(name, batch_size, found["epoch"], found[key], found["epoch"][-1]) for key, name in names.items()]


def draw_gradient_noise(curves: Sequence[Ratios], folder: Path) -> bool:
    """gradient_noise: all curves over the share of their run. False, and nothing written, without any."""
    if not curves:
        return False
    looks = [(BLUE, "o", "-"), (GREEN, "^", "-"), (PURPLE, "D", "--")]
    if curves[0].name.startswith("expert"):
        looks = looks[1:]
    with style():
        figure = new_figure(9.0, 5.6)
        figure.suptitle("How much of one step is chance? Gradients of different batches, compared", x=0.01, ha="left", fontsize=14)
        axes = figure.add_subplot()
        for one, (colour, marker, line) in zip(curves, looks, strict=False):
            known = [(100 * time / one.end, ratio) for time, ratio in zip(one.times, one.ratios, strict=True) if ratio is not None]
            label = f"{one.name} (batches of {one.batch_size})"
            axes.plot([x for x, _ in known], [y for _, y in known], color=colour, marker=marker, linestyle=line, markersize=6, label=label)
        axes.axhline(1.0, color=INK, linewidth=1.2, linestyle="--")
        _scale(axes)
        axes.set_title("Scatter of one batch's gradient, as a multiple of what all batches share", fontsize=11)
        axes.set_xlabel("share of the training run (%)")
        axes.set_ylabel("noise / signal")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        numbers = [{"name": one.name, "batch_size": one.batch_size, "time": one.times, "ratio": one.ratios} for one in curves]
        save_figure(figure, folder, "gradient_noise", {"curves": numbers})
    return True


def _scale(axes: Axes) -> None:
    """A logarithmic axis around 1, with plain numbers, and what its two halves mean."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.5), max(high, 2.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else ""))
    axes.tick_params(axis="y", which="minor", labelsize=9)
    words = {"above 1: chance outweighs what batches share": (3, "bottom"), "below 1: what they share outweighs chance": (-4, "top")}
    for text, (offset, side) in words.items():
        axes.annotate(
            text,
            (0.01, 1.0),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, offset),
            textcoords="offset points",
            va=side,
            color=QUIET,
            fontsize=9,
        )
    grid(axes)
