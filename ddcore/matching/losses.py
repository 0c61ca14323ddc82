"""Outer losses: how far the inner run ended from the expert, and the derivative of that with respect to its end."""

import torch


def normalised_distance(end: torch.Tensor, start: torch.Tensor, goal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """|end - goal|^2 / |start - goal|^2 (MTT, 2203.11932, equation 2; MKDT, 2410.02116, equation 6), and its gradient in `end`.

    All arguments [P]. One means no progress at all; zero means that the goal was met. The number depends on how far apart start
    and goal are, so values of different windows or horizons are not comparable.
    """
    scale = (start - goal).square().sum()
    difference = end - goal
    return difference.square().sum() / scale, difference * (2.0 / scale)
