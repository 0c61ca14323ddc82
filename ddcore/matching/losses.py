"""Outer losses: how far the inner run ended from the expert, and the derivative of that with respect to its end.

Names: theta_0 the start of the window, theta_N the end of the inner run, phi the expert's parameters at the goal; all [P].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SMALL_LAYER = 0.01  # of all parameters: smaller layers are measured together with the one before them
FLOOR = 1e-3  # of the mean squared move: below it, a layer that hardly moved is not blown up further


def normalised_distance(end: Tensor, start: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """|theta_N - phi|^2 / |theta_0 - phi|^2 (MTT, 2203.11932, equation 2; MKDT, 2410.02116, equation 6), and its gradient in `end`.

    All arguments [P]. One means no progress at all; zero means that the goal was met. The number depends on how far apart start
    and goal are, so values of different windows or horizons are not comparable.
    """
    scale = (start - goal).square().sum()
    difference = end - goal
    return difference.square().sum() / scale, difference * (2.0 / scale)


def layer_distance(end: Tensor, start: Tensor, goal: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean over layers l of |theta_N,l - phi_l|^2 / max(|theta_0,l - phi_l|^2, floor_l), and its gradient in `end`.

    sizes: parameters of each layer, in order; see `joined_layers`. floor_l: `FLOOR` times the squared move that a layer of this size
    would have if all parameters moved alike. Each layer counts the same, however large it is or far it moved.
    """
    difference, move = end - goal, (start - goal).square()
    share = move.sum() / len(move)
    total, gradient = torch.zeros_like(share), torch.empty_like(difference)
    parts = zip(difference.split(list(sizes)), move.split(list(sizes)), gradient.split(list(sizes)), strict=True)
    for own, moved, out in parts:
        scale = torch.maximum(moved.sum(), FLOOR * len(own) * share) * len(sizes)
        total = total + own.square().sum() / scale
        torch.mul(own, 2.0 / scale, out=out)
    return total, gradient


def joined_layers(sizes: Sequence[int]) -> list[int]:
    """Layers' sizes, those of less than `SMALL_LAYER` of all parameters joined to the layer before (the first: to the one after).

    A norm's handful of numbers moves erratically: by itself it would weigh as much as all convolutions.
    """
    least, joined = SMALL_LAYER * sum(sizes), list[int]()
    for size in sizes:
        if joined and (size < least or joined[0] < least):
            joined[-1] += size
        else:
            joined.append(size)
    return joined


def cosine_distance(vector: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """1 - <u, v> / (|u| |v|) for u = `vector`, v = `along`, both [P], and its gradient in u. One, and no gradient, where u or v is zero.

    d/du = (cos u / |u| - v / |v|) / |u|.
    """
    tiny = torch.finfo(vector.dtype).tiny
    length, other = vector.norm(), along.norm()
    inverse = torch.where(length > tiny, 1.0 / length, torch.zeros_like(length))
    unit, goal = vector * inverse, along * torch.where(other > tiny, 1.0 / other, torch.zeros_like(other))
    cosine = torch.dot(unit, goal)
    return 1.0 - cosine, (cosine * unit - goal) * inverse
