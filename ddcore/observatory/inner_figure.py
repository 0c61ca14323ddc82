"""A picture of pre-training on a synthetic set beside the expert that it was made to follow."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ddcore.observatory.canvas import BLUE, GREEN, INK, QUIET, RED, grid, new_figure, save_figure, style
from ddcore.observatory.inner_path import InnerPaths

LOOKS = {"synthetic": ("on the synthetic images", RED, "-", "o"), "real": ("on the real images they began from", BLUE, "--", "s")}


def draw_inner(found: InnerPaths, images: int, folder: Path) -> None:
    """inner_path: the runs in the plane of the experts' moves, and how far they are from the expert at each time."""
    with style():
        figure = new_figure(13.0, 5.9)
        title = f"Does pre-training on {images} images follow an expert, which saw all the real ones?"
        figure.suptitle(title, x=0.01, ha="left", fontsize=14)
        left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
        rows = _plane(left, found)
        _distances(right, found)
        entries = {label: handle for axes in (left, right) for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3)
        numbers = {"epochs": found.epochs, "distances": found.distances, "standing": found.standing}
        save_figure(figure, folder, "inner_path", {**numbers, "explained": found.plane.explained.tolist(), "rows": rows})


def _plane(axes: Axes, found: InnerPaths) -> list[dict[str, Any]]:
    points, rows = found.plane.coordinates.numpy(), []
    experts = points[: found.experts * found.snapshots].reshape(found.experts, found.snapshots, 2)
    for number, path in reversed(list(enumerate(experts))):
        label = {0: "the expert that is followed, a dot an epoch", 1: "other experts"}.get(number)
        look: dict[str, Any] = (
            {"color": QUIET, "alpha": 0.5} if number else {"color": GREEN, "linewidth": 2.2, "marker": "D", "markersize": 5}
        )
        axes.plot(path[:, 0], path[:, 1], label=label, **look)
        rows += [{"path": f"expert {number}", "epoch": t, "x": float(x), "y": float(y)} for t, (x, y) in enumerate(path)]
    runs = points[found.experts * found.snapshots :].reshape(len(found.runs), len(found.epochs), 2)
    for name, path in zip(found.runs, runs, strict=True):
        label, colour, line, marker = LOOKS[name]
        axes.plot(path[:, 0], path[:, 1], color=colour, linestyle=line, linewidth=2.0, label=f"pre-training {label}")
        axes.scatter(path[-1:, 0], path[-1:, 1], color=colour, marker=marker, s=60, zorder=4)
        rows += [{"path": name, "epoch": t, "x": float(x), "y": float(y)} for t, (x, y) in zip(found.epochs, path, strict=True)]
    axes.scatter([0], [0], facecolor="white", edgecolor=INK, s=80, zorder=5, label="start")
    first, second = (100 * float(share) for share in found.plane.explained)
    axes.set_xlabel(f"along the experts' 1st direction, L2 units ({first:.0f} % of their moves)")
    axes.set_ylabel(f"along their 2nd ({second:.0f} %)")
    axes.set_title("Where it goes, in the plane of the experts' moves")
    grid(axes)
    return rows


def _distances(axes: Axes, found: InnerPaths) -> None:
    axes.plot(found.epochs, found.standing, color=INK, linestyle=":", linewidth=2.0, label="if the network stood still")
    for name in found.runs:
        label, colour, line, _ = LOOKS[name]
        axes.plot(found.epochs, found.distances[name], color=colour, linestyle=line, linewidth=2.0, label=f"pre-training {label}")
    axes.set_ylim(bottom=0)
    axes.set_title("How far from the expert at the same time (lower is closer)")
    axes.set_xlabel("expert's epoch that the step stands for")
    axes.set_ylabel("distance in parameters (L2)")
    grid(axes)
