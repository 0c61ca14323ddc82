"""Pictures of motion: how far and how straight, in which directions, and in which layers."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ddcore.observatory.canvas import BLUE, GREEN, INK, ORANGE, QUIET, grid, new_figure, save_figure, style

MOST_PANELS = 3  # of matrices and maps beside one another; more paths than that are in the numbers, and the title says so
MOST_LABELS = 24  # layers named beside a map
LOOKS = {"student": ("student (learns by gradient)", BLUE, "-"), "teacher": ("teacher (moving average of the student)", ORANGE, "--")}

Values = NDArray[np.float64]


def draw_motion(motion: dict[str, Any], null: dict[str, Any], folder: Path, prefix: str = "", unit: str = "training step") -> list[str]:
    """Figures motion, directions and layers, each as .png, .svg and .json; returns their names, with the prefix.

    motion: `ddcore.observatory.motion.Motion.to_json()`; null: `ddcore.observatory.null.against_null(...)` of the same paths;
    unit: what `step` counts.
    """
    with style():
        for name, draw in (("motion", _draw_motion), ("directions", _draw_directions), ("layers", _draw_layers)):
            figure, numbers = draw(motion, null, unit)
            save_figure(figure, folder, prefix + name, numbers)
    return [prefix + name for name in ("motion", "directions", "layers")]


def _draw_motion(motion: dict[str, Any], null: dict[str, Any], unit: str) -> tuple[Figure, dict[str, Any]]:
    figure = new_figure(13.5, 8.6)
    figure.suptitle("How far, how fast and how straight the network moves through parameter space", x=0.01, ha="left", fontsize=14)
    far, fast, straight, chance = [figure.add_subplot(2, 2, number) for number in (1, 2, 3, 4)]
    step, paths, pair = np.array(motion["step"]), motion["paths"], motion["pair"]
    middle = (step[1:] + step[:-1]) / 2
    others = [name for name in paths if name not in LOOKS]
    for name, path in paths.items():
        look = _look(name, others)
        far.plot(step, path["distance_from_start"], **look)
        fast.plot(middle, _array(path["step_length"]) / np.diff(step), **look)
        straight.plot(middle, _array(path["cosine_to_last_displacement"]), **look)
    if pair is not None:
        far.plot(step, pair["gap"], color=INK, linestyle=":", label="gap between student and teacher")
        straight.plot(
            step[:-1], _array(pair["gap_cosine"]), color=INK, linestyle=":", label="student's move and the direction to its teacher"
        )
    far.set(title="How far: distance from the start", ylabel="distance in parameters (L2)", xlabel=unit)
    fast.set(title="How fast: distance moved per unit of time", ylabel=f"L2 distance per {unit}", xlabel=unit)
    straight.set(title="How straight: does each move lead to where the run ends?", xlabel=unit, ylim=(-1.05, 1.05))
    straight.set_ylabel("cosine of the angle")
    straight.set_yticks([-1, -0.5, 0, 0.5, 1], ["−1: straight back", "−0.5", "0: right angle", "0.5", "1: same way"])
    straight.axhline(0, color=QUIET, linewidth=1)
    for axes in (far, fast):
        axes.set_ylim(0, 1.08 * max(float(axes.dataLim.y1), 1e-12))
    for axes in (far, fast, straight):
        grid(axes)
        axes.legend(loc="best")
    _against_chance(chance, null)
    return figure, {key: motion[key] for key in ("step", "pair")} | {
        "paths": _without(paths, "cosines", "layer_displacement"),
        "null": null,
    }


def _against_chance(axes: Axes, null: dict[str, Any]) -> None:
    """Bars: shares of the variance along the first two principal directions, recorded and shuffled."""
    recorded, shuffled = 100 * _array(null["explained"]), 100 * _array(null["shuffled"])
    place, low, high = np.arange(len(recorded)), shuffled.min(0), shuffled.max(0)
    bars = axes.bar(place - 0.19, recorded, 0.36, color=BLUE, label="the run as recorded")
    axes.bar(place + 0.19, shuffled.mean(0), 0.36, color="#BBBBBB", label=f"its moves in random order (mean and range of {len(shuffled)})")
    spread = np.clip([shuffled.mean(0) - low, high - shuffled.mean(0)], 0.0, None)  # equal draws may be below zero by rounding
    axes.errorbar(place + 0.19, shuffled.mean(0), spread, fmt="none", ecolor=INK, capsize=5)
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    for x, end, value in zip(place + 0.19, high, shuffled.mean(0), strict=True):
        axes.annotate(f"{value:.0f} %", (x, end), xytext=(0, 4), textcoords="offset points", ha="center", va="bottom")
    axes.set_xticks(place, ["1st principal direction", "2nd principal direction"][: len(recorded)])
    axes.set(title="More than chance? What a drawing in a plane shows", ylabel="share of the variance (%)")
    axes.set_xlabel(
        "blue within the range of grey: such a drawing shows no more\nthan it would of the same moves in any order", color=QUIET
    )
    axes.set_ylim(0, 1.45 * max(float(recorded.max()), float(high.max()), 1.0))
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
    axes.legend(loc="upper right")
    grid(axes)


def _draw_directions(motion: dict[str, Any], _null: dict[str, Any], unit: str) -> tuple[Figure, dict[str, Any]]:
    paths, step = _shown(motion["paths"]), np.array(motion["step"])
    figure = new_figure(1.9 + 5.2 * len(paths), 6.0)
    figure.suptitle(f"Which moves, from one snapshot to the next, point the same way?{_of(paths, motion)}", x=0.01, ha="left", fontsize=14)
    panels = []
    for number, (name, path) in enumerate(paths.items()):
        axes = figure.add_subplot(1, len(paths), number + 1)
        edges, cosines = (step[1:] + step[:-1]) / 2, _array(path["cosines"])
        axes.set_facecolor("#EEEEEE")
        mesh = axes.pcolormesh(edges, edges, cosines, cmap="RdBu_r", vmin=-1, vmax=1, shading="nearest", rasterized=True)
        axes.set(title=_title(name), xlabel=f"one move, made at this {unit}", ylabel=f"another move, made at this {unit}", aspect="equal")
        panels.append(axes)
    bar = figure.colorbar(mesh, ax=panels, ticks=[-1, -0.5, 0, 0.5, 1], shrink=0.85, pad=0.02)
    bar.ax.set_yticklabels(["−1: opposite", "−0.5", "0: unrelated", "0.5", "1: same way"])
    bar.set_label("cosine of the angle between the two moves")
    return figure, {"step": motion["step"], "cosines": {name: path["cosines"] for name, path in paths.items()}}


def _draw_layers(motion: dict[str, Any], _null: dict[str, Any], unit: str) -> tuple[Figure, dict[str, Any]]:
    paths, step, layers = _shown(motion["paths"]), np.array(motion["step"]), motion["layers"]
    maps = {name: _per_parameter(path["layer_displacement"], layers) for name, path in paths.items()}
    shown = list(range(0, len(layers), -(-len(layers) // MOST_LABELS)))
    figure = new_figure(3.4 + 4.6 * len(paths), min(9.0, 2.6 + 0.3 * len(layers)))
    figure.suptitle(f"Which layers move? From the image (top) to the output (bottom){_of(paths, motion)}", x=0.01, ha="left", fontsize=14)
    top, panels = max(float(values.max()) for values in maps.values()), []
    for number, (name, values) in enumerate(maps.items()):
        axes = figure.add_subplot(1, len(maps), number + 1)
        mesh = axes.pcolormesh(
            step, np.arange(len(layers)), values, cmap="viridis", vmin=0, vmax=top or 1, shading="nearest", rasterized=True
        )
        axes.set(title=_title(name), xlabel=unit)
        axes.invert_yaxis()
        axes.set_yticks(shown if number == 0 else [], [list(layers)[place] for place in shown] if number == 0 else [])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panels.append(axes)
    figure.colorbar(mesh, ax=panels, pad=0.02).set_label("distance from the start,\nper parameter (root mean square)")
    rows = {name: {layer: row.tolist() for layer, row in zip(layers, values, strict=True)} for name, values in maps.items()}
    return figure, {"step": motion["step"], "parameters": layers, "root_mean_square_displacement": rows}


def _per_parameter(displacement: dict[str, list[float]], layers: dict[str, int]) -> Values:
    """[layers, s]: each layer's L2 displacement over the root of its size, so that large and small layers compare."""
    return np.array([_array(displacement[name]) / max(size, 1) ** 0.5 for name, size in layers.items()])


def _look(name: str, others: list[str]) -> dict[str, Any]:
    """How a path is drawn; the paths without a look of their own share one line in the legend."""
    if name in LOOKS:
        label, colour, line = LOOKS[name]
        return {"label": label, "color": colour, "linestyle": line, "linewidth": 2.2}
    label = _title(name) if len(others) == 1 else f"each of {len(others)} paths"
    return {"label": label if name == others[0] else None, "color": GREEN, "linewidth": 1.2, "alpha": 0.7}


def _title(name: str) -> str:
    return f"{name[0].upper()}{name[1:].replace('-', ' ')}"


def _shown(paths: dict[str, Any]) -> dict[str, Any]:
    return dict(list(paths.items())[:MOST_PANELS])


def _of(paths: dict[str, Any], motion: dict[str, Any]) -> str:
    total = len(motion["paths"])
    return "" if len(paths) == total else f" ({len(paths)} of {total} paths)"


def _without(paths: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {name: {key: value for key, value in path.items() if key not in keys} for name, path in paths.items()}


def _array(values: list[Any]) -> Values:
    """Numbers, with NaN, which is not drawn, for None."""
    return np.array(values, dtype=np.float64)
