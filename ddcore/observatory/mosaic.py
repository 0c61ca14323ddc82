"""Many small images as one picture."""

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def mosaic(images: Tensor, columns: int, side: int = 40, gap: int = 2) -> NDArray[np.uint8]:
    """Images [n, c, h, w] in pixel units, row by row, clipped to 0..1, as uint8 [H, W, 3]; small ones grow by whole factors.

    side: pixels that the longer edge of an image reaches at least. gap: white pixels between images.
    """
    zoom = max(1, math.ceil(side / max(images.shape[2:])))
    pixels = (images.detach().cpu().clamp(0, 1) * 255).round().byte().repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    pixels = pixels.expand(-1, 3, -1, -1) if images.shape[1] == 1 else pixels
    count, _, height, width = pixels.shape
    rows = math.ceil(count / columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas
