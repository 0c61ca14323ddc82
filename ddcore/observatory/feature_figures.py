"""Pictures of what a network knew over its run, and of how much of its motion was chance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ddcore.observatory.canvas import BLUE, GREEN, INK, ORANGE, PURPLE, QUIET, grid, new_figure, save_figure, style
from ddcore.ssl.measure import LEAST_RANK

LOOKS = {
    "student": (BLUE, "o", "-"),
    "teacher": (ORANGE, "s", "--"),
    "experts": (GREEN, "^", "-"),
    "experts' encoder": (PURPLE, "D", "--"),
}
WHOSE = {"experts": "all parameters", "experts' encoder": "encoder alone"}
PANELS = {
    "knn": ("How well do neighbours share a class?", "k-NN accuracy (percent)"),
    "rank": ("How many directions are in use?", "effective rank of the features"),
    "cka_to_last": ("How like the finished network?", "CKA with the last snapshot (1: same)"),
}


def draw_features(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """features: `ddcore.observatory.snapshots.per_snapshot`'s rows over training, a panel a figure; k-NN only where there are labels."""
    shown = [name for name in PANELS if all(row[name] is not None for row in rows)]
    names = list(dict.fromkeys(row["network"] for row in rows))
    with style():
        figure = new_figure(4.6 * len(shown), 4.6)
        figure.suptitle("What the encoder has learnt, snapshot by snapshot", x=0.01, ha="left", fontsize=14)
        for number, quantity in enumerate(shown):
            axes = figure.add_subplot(1, len(shown), number + 1)
            for name in names:
                own = [row for row in rows if row["network"] == name]
                _line(axes, [row["step"] for row in own], [row[quantity] for row in own], name, _label(name, len(names)))
            title, unit = PANELS[quantity]
            _finish(axes, title, unit)
            axes.set_ylim(0, {"knn": 103, "rank": 1.1 * max(LEAST_RANK, *(row["rank"] for row in rows)), "cka_to_last": 1.05}[quantity])
            if quantity == "rank":
                axes.axhline(LEAST_RANK, color=QUIET, linewidth=1.2, linestyle=":")
                axes.text(
                    0.98,
                    LEAST_RANK,
                    f"{LEAST_RANK}: collapsed below",
                    color=QUIET,
                    fontsize=9,
                    ha="right",
                    va="bottom",
                    transform=axes.get_yaxis_transform(),
                )
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2)
        save_figure(figure, folder, "features", {"rows": [dict(row) for row in rows]})


def draw_noise(
    found: Mapping[str, Mapping[str, Any]], folder: Path, figure_name: str = "noise", unit: str = "training step", what: str = "runs"
) -> None:
    """What runs share, how they scatter, and the ratio of the two.

    found: a network's name -> `ddcore.observatory.noise.noise_to_signal`; unit: what its steps count; what: which paths these are.
    """
    runs = next(iter(found.values()))["runs"]
    with style():
        figure = new_figure(11.0, 5.4)
        figure.suptitle(
            f"{runs} {what} from one start: how much of their motion is shared, how much is chance?", x=0.01, ha="left", fontsize=14
        )
        left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
        for name, one in found.items():
            colour, marker, _ = LOOKS.get(name, (GREEN, "^", "-"))
            whose = f", {WHOSE.get(name, name)}" if len(found) > 1 else ""
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5}
            left.plot(one["step"], one["signal"], **look, label=f"signal: shared by all {what}{whose}")
            left.plot(one["step"], one["noise"], **look, markerfacecolor="white", linestyle=":", label=f"noise: each one's own{whose}")
            _ratios(right, one, name)
        _finish(left, f"How far the {what} have moved from their start", "distance in parameters (L2)", unit)
        _finish(right, "Noise as a multiple of the signal", "noise / signal", unit)
        right.axhline(1.0, color=INK, linewidth=1.2, linestyle="--", label="noise as large as the signal")
        highest = max((ratio for one in found.values() for ratio in one["ratio"] if ratio is not None), default=1.0)
        right.set_ylim(0, 1.15 * max(1.0, highest))
        right.set_xlim(left.get_xlim())
        entries = {label: handle for axes in (left, right) for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3)
        save_figure(figure, folder, figure_name, {name: dict(one) for name, one in found.items()})


def _ratios(axes: Axes, one: Mapping[str, Any], name: str) -> None:
    known = [(s, r, d) for s, r, d in zip(one["step"], one["ratio"], one["deviation"], strict=True) if r is not None]
    if not known:
        axes.text(0.5, 0.3, "no signal: the runs share nothing that so few could show", color=QUIET, ha="center", transform=axes.transAxes)
        return
    _line(axes, [s for s, _, _ in known], [r for _, r, _ in known], name, "")
    banded = [(s, r - d, r + d) for s, r, d in known if d is not None]
    if banded:
        step, low, high = zip(*banded, strict=True)
        axes.fill_between(step, low, high, color=LOOKS.get(name, (GREEN,))[0], alpha=0.2, linewidth=0, label="± one standard error")


def _label(name: str, networks: int) -> str:
    meanings = {"student": "student (learns by gradient)", "teacher": "teacher (its moving average)"}
    return meanings.get(name, name) if networks > 1 else "the encoder"


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], name: str, label: str) -> None:
    colour, marker, line = LOOKS.get(name, (GREEN, "^", "-"))
    axes.plot(x, y, color=colour, marker=marker, markersize=5, linestyle=line, linewidth=2.0, label=label)


def _finish(axes: Axes, title: str, quantity: str, unit: str = "training step") -> None:
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.set_ylabel(quantity)
    axes.set_ylim(bottom=0)
    grid(axes)
