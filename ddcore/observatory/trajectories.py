"""Paths through parameter space, drawn in the plane that shows most of them."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from ddcore.observatory.canvas import BLUE, INK, ORANGE, QUIET, grid, new_figure, save_figure, style
from ddcore.observatory.pca import Plane, displacement_gram, principal_plane
from ddcore.observatory.recordings import ExpertPaths, TeacherPaths

NAMES = {"barlow_twins": "Barlow Twins", "simclr": "SimCLR"}

Points = NDArray[np.float64]


def draw_experts(paths: ExpertPaths, folder: Path) -> None:
    """expert_trajectories: where the experts are, and how each moves from its own start."""
    ends = paths.starts + paths.snapshots - 1
    places = principal_plane(paths.gram, paths.starts, ends)
    moves = principal_plane(displacement_gram(paths.gram, paths.origins), paths.starts, ends)
    shape = (paths.experts, paths.snapshots, 2)
    where = places.coordinates.numpy().reshape(shape)
    moved = moves.coordinates.numpy().reshape(shape)
    moved = moved - moved[:, :1]
    with style():
        figure = new_figure(12.0, 5.9)
        count = f"{paths.experts} experts" if paths.experts == paths.recorded else f"{paths.experts} of {paths.recorded} experts"
        figure.suptitle(f"How students trained on the real images move through parameter space ({count})", x=0.01, ha="left", fontsize=14)
        left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
        _expert_panel(left, where, places, "Where they are")
        _expert_panel(right, moved, moves, "How each moves away from its own start")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        colours = figure.colorbar(_epochs(left, paths.snapshots), ax=[left, right], ticks=_ticks(paths.snapshots), pad=0.02)
        colours.set_label("epochs trained")
        rows = [
            {"expert": e, "epoch": t, "x": where[e, t, 0], "y": where[e, t, 1], "dx": moved[e, t, 0], "dy": moved[e, t, 1]}
            for e in range(paths.experts)
            for t in range(paths.snapshots)
        ]
        numbers = {"explained": places.explained.tolist(), "explained_of_moves": moves.explained.tolist(), "rows": rows}
        save_figure(figure, folder, "expert_trajectories", numbers)


def _ticks(snapshots: int) -> list[int]:
    return list(range(0, snapshots, max(1, snapshots // 8)))


def _epochs(axes: Axes, snapshots: int) -> Any:
    """An invisible scatter that carries the colours of time for the bar."""
    return axes.scatter([], [], c=[], cmap="viridis", norm=Normalize(0, max(1, snapshots - 1)))


def _expert_panel(axes: Axes, points: Points, plane: Plane, title: str) -> None:
    snapshots = points.shape[1]
    for path in points:
        axes.plot(path[:, 0], path[:, 1], color=QUIET, linewidth=0.9, alpha=0.7, zorder=1)
    flat, time = points[:, 1:].reshape(-1, 2), np.tile(np.arange(1, snapshots), len(points))
    axes.scatter(
        flat[:, 0],
        flat[:, 1],
        c=time,
        cmap="viridis",
        norm=Normalize(0, max(1, snapshots - 1)),
        s=30,
        zorder=2,
        label="snapshot after a whole epoch",
    )
    axes.scatter(points[:, 0, 0], points[:, 0, 1], facecolor="white", edgecolor=INK, s=44, zorder=3, label="start: random parameters")
    _label_plane(axes, plane)
    axes.set_title(title)


def _label_plane(axes: Axes, plane: Plane) -> None:
    first, second = (100 * float(share) for share in plane.explained)
    axes.set_xlabel(f"along the 1st principal direction, L2 units ({first:.0f} % of the variance)")
    axes.set_ylabel(f"along the 2nd, L2 units ({second:.0f} %)")
    axes.set_aspect("equal", adjustable="datalim")
    grid(axes)


def draw_teacher(paths: TeacherPaths, ssl: str, folder: Path) -> None:
    """teacher_trajectories: the network that learns and, for DINO, its moving average, in their common plane."""
    plane = principal_plane(paths.gram, paths.rows("student")[:1], paths.rows("student")[-1:])
    where = {name: plane.coordinates[paths.rows(name)].numpy() for name in paths.names}
    both = len(paths.names) > 1
    titles = "DINO's student and its slow average, the teacher," if both else f"The encoder that learns by {NAMES.get(ssl, ssl)}"
    with style():
        spans = np.ptp(plane.coordinates.numpy(), axis=0)
        figure = new_figure(9.0, 2.2 + 7.5 * float(np.clip(1.2 * spans[1] / max(spans[0], 1e-12), 0.35, 0.75)))
        figure.suptitle(f"{titles} in parameter space", x=0.01, ha="left", fontsize=14)
        axes = figure.add_subplot()
        if both:
            _link(axes, where["student"], where["teacher"])
        looks = {
            "student": ("student (learns by gradient)" if both else "encoder", BLUE, "o"),
            "teacher": ("teacher (moving average)", ORANGE, "s"),
        }
        for name, points in where.items():
            label, colour, marker = looks[name]
            _path(axes, points, label, colour, marker)
        start = where["student"][0]
        axes.scatter(
            [start[0]], [start[1]], marker="*", s=240, facecolor="white", edgecolor=INK, linewidth=1.3, zorder=5, label="start (step 0)"
        )
        _label_plane(axes, plane)
        axes.set_title(f"{len(paths.step)} snapshots up to step {int(paths.step[-1]):,}; arrows show time", fontsize=11)
        figure.legend(loc="outside lower center", ncols=4)
        rows = [
            {"network": name, "step": int(step), "x": float(x), "y": float(y)}
            for name, points in where.items()
            for step, (x, y) in zip(paths.step, points, strict=True)
        ]
        save_figure(figure, folder, "teacher_trajectories", {"explained": plane.explained.tolist(), "rows": rows})


def _link(axes: Axes, first: Points, second: Points) -> None:
    for number, (a, b) in enumerate(zip(first, second, strict=True)):
        label = "same step" if number == 0 else None
        axes.plot([a[0], b[0]], [a[1], b[1]], color=QUIET, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1, label=label)


def _path(axes: Axes, points: Points, label: str, colour: str, marker: str) -> None:
    axes.plot(
        points[:, 0],
        points[:, 1],
        color=colour,
        marker=marker,
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        label=label,
        zorder=3,
    )
    for place in sorted({len(points) // 5, len(points) // 2, len(points) - 2}):
        a, b = points[max(place, 0)], points[min(place + 1, len(points) - 1)]
        if np.linalg.norm(b - a) > 0:
            axes.annotate(
                "",
                xy=(b[0], b[1]),
                xytext=(a[0], a[1]),
                arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8, "mutation_scale": 18},
                zorder=4,
            )
