"""Synthetic images beside the real ones they began from."""

import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from ddcore.observatory.canvas import new_figure, save_figure, style
from ddcore.observatory.mosaic import mosaic
from ddcore.synthetic import SyntheticSet

SHOWN = 36  # images, evenly spaced over the set
SIDE, GAP = 40, 2


def draw_images(data: SyntheticSet, real: Tensor, method: str, folder: Path) -> None:
    """images: the same places of three grids show what was there first, what it became, and the difference.

    real: uint8 [m, c, h, w], the images the set began from, in its order.
    """
    rows = torch.linspace(0, len(data.images) - 1, min(SHOWN, len(data.images))).round().long()
    before, after = real[rows].float() / 255, data.images[rows]
    change = after - before
    signed = change.mean(1, keepdim=True)
    scale = float(torch.quantile(signed.abs().flatten(), 0.995)) or 1.0
    columns = math.ceil(math.sqrt(len(rows)))
    lines = math.ceil(len(rows) / columns)
    with style():
        figure = new_figure(13.5, 0.95 + 4.0 * lines / columns)
        title = (
            f"{len(rows)} of {len(data.images)} synthetic images, and the real ones they began from (method: {method.replace('_', '-')})"
        )
        figure.set_layout_engine("constrained", wspace=0.04)
        figure.suptitle(title, x=0.01, ha="left", fontsize=14)
        axes = [figure.add_subplot(1, 3, number + 1) for number in range(3)]
        axes[0].imshow(mosaic(before, columns, SIDE, GAP), interpolation="nearest")
        axes[1].imshow(mosaic(after, columns, SIDE, GAP), interpolation="nearest")
        tiles = mosaic(((signed / scale).clamp(-1, 1) + 1) / 2, columns, SIDE, GAP)[..., 0].astype(np.float64)
        gaps = mosaic(torch.zeros_like(signed), columns, SIDE, GAP)[..., 0] > 0
        colours = matplotlib.colormaps["PuOr"].with_extremes(bad="#999999")
        masked = np.ma.masked_array((tiles / 255 * 2 - 1) * scale, gaps)
        shown = axes[2].imshow(masked, cmap=colours, vmin=-scale, vmax=scale, interpolation="nearest")
        axes[0].set_title("Real images")
        axes[1].set_title("Synthetic images")
        axes[2].set_title("Difference" if float(change.abs().max()) > 0 else "Difference (none)")
        for one in axes:
            one.set_axis_off()
        bar = figure.colorbar(shown, ax=axes[2], fraction=0.046, pad=0.03)
        bar.set_label("change of brightness (full range is 1)")
        numbers = [
            {"place": int(row), "real_image": int(data.indices[row]), "mean_absolute_change": float(one.abs().mean())}
            for row, one in zip(rows, change, strict=True)
        ]
        pixel_range = [float(data.images.min()), float(data.images.max())]
        save_figure(figure, folder, "images", {"pixel_range": pixel_range, "rows": numbers})
