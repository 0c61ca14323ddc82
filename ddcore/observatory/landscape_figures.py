"""Pictures of the loss around an expert: along its path, through its end in chance directions, and in the plane of its path."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from ddcore.observatory.canvas import GREEN, INK, QUIET, grid, new_figure, save_figure, style

LEVELS = 16


def draw_landscape(found: dict[str, Any], folder: Path) -> None:
    """landscape: of `ddcore.observatory.landscape.landscape`, a panel for each of its three looks."""
    with style():
        figure = new_figure(16.5, 5.8)
        figure.suptitle(
            f"The error that an expert walks down, on {found['images']} real images (darker: lower)", x=0.01, ha="left", fontsize=14
        )
        path, around, plane = (figure.add_subplot(1, 3, number) for number in (1, 2, 3))
        _path(path, found["path"])
        levels = _levels([found["around"], found["plane"]])
        shown = [_contour(axes, found[key], levels) for axes, key in ((around, "around"), (plane, "plane"))]
        around.set_title("Around its end, in two random directions")
        plane.set_title("In the plane of its own path")
        if drawn := [one for one in shown if one is not None]:
            bar = figure.colorbar(drawn[-1], ax=[around, plane], pad=0.02, ticks=np.log(levels[::3]))
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{np.exp(value):.2g}"))
            bar.set_label("mean squared error")
        around.set_xlabel("step in one direction (1: as long as the weights are)")
        around.set_ylabel("step in another")
        _walked(plane, np.array(found["plane"]["path"]))
        shares = [100 * share for share in found["plane"]["explained"]]
        plane.set_xlabel(f"along the path's 1st direction, L2 units ({shares[0]:.0f} % of its motion)")
        plane.set_ylabel(f"along its 2nd ({shares[1]:.0f} %)")
        around.scatter([0], [0], marker="*", s=220, facecolor="white", edgecolor=INK, zorder=4)
        figure.legend(*plane.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        save_figure(figure, folder, "landscape", found)


def _path(axes: Axes, path: dict[str, Any]) -> None:
    epoch, loss = np.array(path["epoch"]), np.array(path["loss"], dtype=np.float64)
    whole = epoch == np.round(epoch)
    axes.plot(epoch, loss, color=GREEN, linewidth=2.2, label="on straight lines between")
    axes.plot(epoch[whole], loss[whole], color=GREEN, marker="o", markersize=6, linestyle="none", label="at a snapshot")
    axes.set(title="Along its path", xlabel="epochs trained", ylabel="mean squared error")
    axes.set_ylim(0, 1.06 * float(np.nanmax(loss)) if np.isfinite(loss).any() else 1)
    axes.legend(loc="best")
    grid(axes)


def _contour(axes: Axes, look: dict[str, Any], levels: NDArray[np.float64]) -> Any:
    """Filled bands of loss, if there are any to tell apart."""
    axes.set_facecolor("#EEEEEE")  # where the loss is not finite
    loss = np.array(look["loss"], dtype=np.float64)
    if not len(levels) or not np.isfinite(loss).any():
        return None
    axes.contour(look["x"], look["y"], np.log(loss), np.log(levels), colors="white", linewidths=0.4, alpha=0.6)
    return axes.contourf(look["x"], look["y"], np.log(loss), np.log(levels), cmap="viridis", extend="max", zorder=0)


def _levels(looks: list[dict[str, Any]]) -> NDArray[np.float64]:
    """From the lowest loss upwards, in equal factors; a few huge losses at the rim do not spread them out. Empty if all are alike."""
    loss = np.concatenate([np.array(look["loss"], dtype=np.float64).flatten() for look in looks])
    loss = loss[np.isfinite(loss)]
    if not len(loss) or not loss.max() > loss.min() > 0:
        return np.array([])
    return np.geomspace(loss.min(), min(loss.max(), 100 * loss.min()), LEVELS)


def _walked(axes: Axes, path: NDArray[np.float64]) -> None:
    axes.plot(
        path[:, 0], path[:, 1], color=INK, linewidth=1.4, marker="o", markersize=4, markerfacecolor=QUIET, label="the path, a dot an epoch"
    )
    axes.scatter(path[:1, 0], path[:1, 1], s=70, facecolor="white", edgecolor=INK, zorder=4, label="start")
    axes.scatter(path[-1:, 0], path[-1:, 1], marker="*", s=220, facecolor="white", edgecolor=INK, zorder=4, label="end")
