"""What all self-supervised objectives share: modules that learn, a loss of several views, and what happens around a step."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Objective(Protocol):
    """One way to train a backbone without labels. The first two views are global crops, the others local ones.

    modules: everything with a state, by name, for checkpoints. buffers: loose tensors of state, changed in place.
    """

    modules: dict[str, nn.Module]
    buffers: dict[str, torch.Tensor]
    max_norm: float | None  # gradients are clipped to it

    @property
    def backbone(self) -> nn.Module:
        """The encoder that the optimiser changes."""

    @property
    def result(self) -> nn.Module:
        """The encoder to keep: the backbone, or its average."""

    def learning(self) -> list[nn.Module]:
        """Modules whose parameters the optimiser holds."""

    def loss(
        self, views: list[torch.Tensor], epoch: float, hidden: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of normalised views [b, c, h, w] each, and figures worth a curve.

        hidden: bool [2b, patches] on the CPU, the patches of the global views that a masked-patch loss hides; read by DINO alone.
        """

    def before_update(self, epoch: int) -> None:
        """Called between the backward pass and the optimiser's step."""

    def after_update(self, step: int, total: int, logged: bool) -> dict[str, float | torch.Tensor]:
        """Called after the optimiser's step `step` (from 0) of `total`; where the step is `logged`, returns figures worth a curve."""


def full_precision(tensor: torch.Tensor) -> torch.autocast:
    """Leaves mixed precision: correlations and cosines that a temperature divides do not bear bfloat16's eight bits."""
    return torch.autocast(tensor.device.type, enabled=False)


def projector(in_dim: int, hidden: int, out_dim: int, layers: int) -> nn.Sequential:
    """Linear, batch norm and ReLU, `layers` - 1 times over; then a linear layer without bias."""
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(in_dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        in_dim = hidden
    return nn.Sequential(*parts, nn.Linear(in_dim, out_dim, bias=False))


class Siamese:
    """Backbone and projector see two views; `loss` compares the embeddings (Barlow Twins, SimCLR)."""

    max_norm: float | None = None

    def __init__(self, backbone: nn.Module, head: nn.Module, compare: Loss) -> None:
        self.modules: dict[str, nn.Module] = {"backbone": backbone, "head": head}
        self.buffers: dict[str, torch.Tensor] = {}
        self._compare = compare

    @property
    def backbone(self) -> nn.Module:
        return self.modules["backbone"]

    @property
    def result(self) -> nn.Module:
        return self.modules["backbone"]

    def learning(self) -> list[nn.Module]:
        return list(self.modules.values())

    def loss(
        self, views: list[torch.Tensor], epoch: float, hidden: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        first, second = self.modules["head"](self.backbone(torch.cat(views))).chunk(2)
        with full_precision(first):
            return self._compare(first.float(), second.float()), {}

    def before_update(self, epoch: int) -> None:
        """Nothing to do."""

    def after_update(self, step: int, total: int, logged: bool) -> dict[str, float | torch.Tensor]:
        return {}
