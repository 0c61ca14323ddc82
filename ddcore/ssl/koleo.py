"""KoLeo (Sablayrolles et al., 1806.03198, equation 2; DINOv2, 2304.07193, section 4): features that keep their distance."""

import torch
from torch.nn import functional

from ddcore.ssl.objective import full_precision

EPSILON = 1e-8  # keeps the logarithm of two equal features finite


def koleo_loss(features: torch.Tensor) -> torch.Tensor:
    """-1/b sum_i log min_{j != i} |x_i - x_j| of features [b, d], b >= 2, each scaled to length one.

    Up to constants, the negative of Kozachenko and Leonenko's estimate of the features' entropy: low when they fill the sphere evenly.
    The neighbour is chosen without a gradient; the distance to it has one. Features that are equal get none.
    """
    with full_precision(features):
        unit = functional.normalize(features.float() if features.dtype != torch.float64 else features, dim=1)
        with torch.no_grad():
            near = (unit @ unit.T).fill_diagonal_(float("-inf")).argmax(1)
        distances: torch.Tensor = torch.linalg.vector_norm(unit - unit[near], dim=1)
        return -(distances + EPSILON).log().mean()
