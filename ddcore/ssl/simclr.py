"""SimCLR (2002.05709): contrast of two views of an image with every other view of the batch."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from ddcore.specs import SimCLRSpec
from ddcore.ssl.objective import Siamese, projector


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent, equation 1, averaged over all 2b ordered pairs; embeddings [b, d] of two views, compared by their cosine."""
    count = len(first)
    both = functional.normalize(torch.cat([first, second]), dim=1)
    similarity = both @ both.T / temperature
    similarity = similarity.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=both.device), float("-inf"))
    partner = torch.arange(2 * count, device=both.device).roll(count)
    return functional.cross_entropy(similarity, partner)


def simclr(spec: SimCLRSpec, backbone: nn.Module, feature_dim: int) -> Siamese:
    """The paper's two-layer projector on `backbone`, and its loss."""
    head = projector(feature_dim, feature_dim, spec.projector_dim, layers=2)
    return Siamese(backbone, head, partial(nt_xent, temperature=spec.temperature))
