"""Barlow Twins (2103.03230): redundancy reduction between two views' embeddings."""

from functools import partial

import torch
from torch import nn

from ddcore.specs import BarlowTwinsSpec
from ddcore.ssl.objective import Siamese, projector


def cross_correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Equation 2: correlations over the batch of embeddings [b, d] and [b, d]: [d, d], each in -1..1."""
    return _standardised(first).T @ _standardised(second) / len(first)


def barlow_twins_loss(first: torch.Tensor, second: torch.Tensor, off_diagonal: float) -> torch.Tensor:
    """Equation 1: sum_i (1 - C_ii)^2 + lambda * sum_i sum_{j != i} C_ij^2, of embeddings [b, d]; lambda is `off_diagonal`."""
    correlation = cross_correlation(first, second)
    diagonal = correlation.diagonal()
    rest = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal * rest


def _standardised(embeddings: torch.Tensor) -> torch.Tensor:
    centred = embeddings - embeddings.mean(0)
    return centred / (centred.square().mean(0) + 1e-9).sqrt()


def barlow_twins(spec: BarlowTwinsSpec, backbone: nn.Module, feature_dim: int) -> Siamese:
    """The paper's three-layer projector on `backbone`, and its loss."""
    head = projector(feature_dim, spec.projector_dim, spec.projector_dim, layers=3)
    return Siamese(backbone, head, partial(barlow_twins_loss, off_diagonal=spec.off_diagonal))
