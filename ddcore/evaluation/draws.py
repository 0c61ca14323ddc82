"""Stratified draws of labelled images: every class keeps its share, and the generator decides which images."""

import torch
from torch import Generator, Tensor

from ddcore.checks import labels_of_class


def stratified(labels: Tensor, fraction: float, generator: Generator, least: int = 0) -> Tensor:
    """Indices of a random `fraction` of each class, in ascending order; int64 [k].

    labels: int64 [n]. A class of `count` images gives `ddcore.checks.labels_of_class(fraction, count)` of them, but not fewer than
    `least` (nor more than it has).
    """
    labels = labels.cpu()
    kept = []
    for label in range(int(labels.max()) + 1):
        of_class = (labels == label).nonzero().flatten()
        order = torch.randperm(len(of_class), generator=generator)
        kept.append(of_class[order[: max(labels_of_class(fraction, len(of_class)), least)]])
    return torch.cat(kept).sort().values


def split(labels: Tensor, fraction: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """(rest, held out): a stratified `fraction` held out; a class of two images or more appears in both parts."""
    labels = labels.cpu()
    held = stratified(labels, fraction, generator, least=1)
    alone = labels.bincount(minlength=1)[labels[held]] == 1
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[held[~alone]] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()
