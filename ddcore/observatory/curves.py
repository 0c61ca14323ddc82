"""Distances and losses over time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ddcore.observatory.canvas import BLUE, GREEN, INK, ORANGE, QUIET, RED, grid, new_figure, save_figure, style
from ddcore.observatory.pca import distances
from ddcore.observatory.recordings import ExpertPaths, TeacherPaths

Curve = list[list[float]]  # [[step, value], ...]


def draw_distances(teacher: TeacherPaths | None, experts: ExpertPaths | None, folder: Path) -> bool:
    """distances: how far teacher and experts are from where they began, and DINO's two networks from each other.

    False, and nothing written, if there is neither.
    """
    panels = [one for one in (teacher, experts) if one is not None]
    if not panels:
        return False
    numbers: dict[str, Any] = {}
    with style():
        figure, axes = _row("How far the networks have moved", len(panels))
        for panel, one in zip(axes, panels, strict=True):
            if isinstance(one, TeacherPaths):
                numbers["teacher"] = _teacher_distances(panel, one)
            else:
                numbers["experts"] = _expert_distances(panel, one)
            panel.set_ylabel("distance in parameters (L2)")
            panel.set_ylim(bottom=0)
            panel.legend(loc="best")
        save_figure(figure, folder, "distances", numbers)
    return True


def _row(title: str, panels: int) -> tuple[Figure, list[Axes]]:
    figure = new_figure(max(6.8, 4.6 * panels), 4.4)
    figure.suptitle(title, x=0.01, ha="left", fontsize=14)
    axes = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    for panel in axes:
        grid(panel)
    return figure, axes


def _teacher_distances(axes: Axes, paths: TeacherPaths) -> list[dict[str, Any]]:
    step, student = paths.step.tolist(), paths.rows("student")
    curves = {"student from its start": (distances(paths.gram, student, student[:1].expand_as(student)), BLUE, "-")}
    if "teacher" in paths.names:
        teacher = paths.rows("teacher")
        curves["teacher from its start"] = (distances(paths.gram, teacher, teacher[:1].expand_as(teacher)), ORANGE, "--")
        curves["student from teacher"] = (distances(paths.gram, student, teacher), INK, ":")
    for name, (values, colour, line) in curves.items():
        axes.plot(step, values.tolist(), color=colour, linestyle=line, linewidth=2.2, label=name)
    axes.set_title("Teacher's training")
    axes.set_xlabel("training step")
    return [
        {"curve": name, "step": s, "distance": v}
        for name, (values, _, _) in curves.items()
        for s, v in zip(step, values.tolist(), strict=True)
    ]


def _expert_distances(axes: Axes, paths: ExpertPaths) -> list[dict[str, Any]]:
    rows = torch.arange(paths.experts * paths.snapshots)
    values = distances(paths.gram, rows, paths.origins).view(paths.experts, paths.snapshots).numpy()
    _band(axes, np.arange(paths.snapshots), values, GREEN, f"from its own start, {_mean_of(paths.experts)}")
    axes.set_title("Experts' training")
    axes.set_xlabel("epochs trained")
    return [
        {"expert": expert, "epoch": epoch, "distance": float(values[expert, epoch])}
        for expert in range(paths.experts)
        for epoch in range(paths.snapshots)
    ]


def _mean_of(experts: int) -> str:
    return f"mean of {experts} experts" if experts > 1 else "one expert"


def _band(axes: Axes, x: NDArray[Any], values: NDArray[np.float64], colour: str, label: str) -> None:
    """A mean over rows [experts, times] with a band of one standard deviation, if there is more than one row."""
    mean = values.mean(0)
    axes.plot(x, mean, color=colour, marker="o", markersize=5, linewidth=2.2, label=label)
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.22, linewidth=0, label="± one standard deviation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_losses(teacher: dict[str, Any], experts: Sequence[dict[str, Any]], matching: dict[str, Any], folder: Path) -> bool:
    """losses: of the teacher, the experts and the matching, as far as each was recorded; False, and nothing written, if none was."""
    expert_losses = np.array([losses for shard in experts for losses in shard["loss"]], dtype=np.float64)
    panels = [
        name
        for name, there in (("teacher", teacher.get("loss")), ("experts", expert_losses.size), ("matching", matching.get("matching_loss")))
        if there
    ]
    if not panels:
        return False
    numbers: dict[str, Any] = {}
    with style():
        figure, axes = _row("What was minimised, stage by stage", len(panels))
        for axis, name in zip(axes, panels, strict=True):
            if name == "teacher":
                numbers[name] = _smooth_curve(axis, teacher["loss"], BLUE, "Teacher: self-supervised loss", "training step")
            elif name == "experts":
                numbers[name] = _expert_losses(axis, expert_losses)
            else:
                curve = matching["matching_loss"]
                numbers[name] = _smooth_curve(axis, curve, RED, "Distillation: trajectory mismatch", "iteration")
                axis.axhline(1.0, color=QUIET, linewidth=1.0, linestyle="--", label="1: no better than standing still")
                axis.set_ylim(0, max(1.05, 1.05 * max(value for _, value in curve[:1] + curve[-1:]), 1.05 * _high(curve)))
            axis.set_ylabel({"teacher": "loss", "experts": "mean squared error", "matching": "share of the squared distance left"}[name])
            axis.legend(loc="best")
        save_figure(figure, folder, "losses", numbers)
    return True


def _high(curve: Curve) -> float:
    return float(np.quantile([value for _, value in curve], 0.98))


def _smooth_curve(axes: Axes, curve: Curve, colour: str, title: str, unit: str) -> list[dict[str, float]]:
    """The recorded points, faint, and their running mean."""
    step, value = np.array(curve, dtype=np.float64).T
    width = max(1, len(value) // 20)
    smooth = np.array([value[max(0, i - width) : i + width + 1].mean() for i in range(len(value))])
    axes.plot(step, value, color=colour, alpha=0.35, linewidth=1.0, label="recorded")
    axes.plot(step, smooth, color=colour, linewidth=2.2, label="running mean")
    axes.set_title(title)
    axes.set_xlabel(unit)
    return [{"step": float(s), "value": float(v)} for s, v in zip(step, value, strict=True)]


def _expert_losses(axes: Axes, losses: NDArray[np.float64]) -> list[dict[str, Any]]:
    _band(axes, np.arange(1, losses.shape[1] + 1), losses, GREEN, _mean_of(len(losses)))
    axes.set_title("Experts: error on the targets")
    axes.set_xlabel("epoch")
    return [{"expert": e, "epoch": t + 1, "loss": float(losses[e, t])} for e in range(losses.shape[0]) for t in range(losses.shape[1])]
