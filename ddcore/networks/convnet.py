"""The small network of dataset distillation: blocks of 3x3 convolution, instance norm, ReLU and 2x2 average pooling."""

import torch
from torch import nn


class ConvNet(nn.Module):
    """ConvNet of Gidaris & Komodakis (1804.09458) with instance norm, as used since 2006.05929; `out_dim` 0 leaves out the linear layer.

    Input [b, in_channels, height, width]; `features` [b, width * (height >> depth) * (width >> depth)]; output [b, out_dim].
    """

    def __init__(self, in_channels: int, height: int, width: int, out_dim: int, depth: int = 3, channels: int = 128) -> None:
        super().__init__()
        if min(height, width) >> depth < 1:
            raise ValueError(f"{depth} halvings of a {height}x{width} image leave less than one pixel")
        blocks: list[nn.Module] = []
        for block in range(depth):
            blocks += [
                nn.Conv2d(in_channels if block == 0 else channels, channels, 3, padding=1),
                nn.GroupNorm(channels, channels),  # one group a channel: instance norm with a learned scale and shift
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.feature_dim = channels * (height >> depth) * (width >> depth)
        self.linear = nn.Linear(self.feature_dim, out_dim) if out_dim else None

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What a probe reads: the last block's output, flattened, [b, feature_dim]."""
        out: torch.Tensor = self.blocks(x)
        return out.flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x)
        if self.linear is None:
            return features
        out: torch.Tensor = self.linear(features)
        return out
