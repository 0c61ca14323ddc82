"""Students beside the ConvNet: residual networks, VGG and a vision transformer, none with running statistics.

What batch norm does for the published networks, group norm (1803.08494) does here: a matched student is a function of its parameters
alone. All are twice differentiable by automatic differentiation.
"""

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from ddcore.networks.student_sizes import RESNET_BLOCKS, VGG11, VIT_PATCH
from ddcore.specs import VIT_HEADS

MOST_GROUPS = 32  # group norm's own default


def groups_of(width: int) -> int:
    """How many groups every norm of a network of `width` has: a power of two, at most 32, that leaves no channel by itself."""
    return max(g for g in (1 << power for power in range(MOST_GROUPS.bit_length())) if width % g == 0 and (2 * g <= width or g == 1))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (1512.03385, figure 2), with group norm."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.shortcut: nn.Module = nn.Identity()
        self.stride = stride
        if in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.GroupNorm(groups, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.norm1(self.conv1(x)))
        # Rows and columns are left out before the 1x1 convolution, not by it; see `ddcore.networks.backbones.BasicBlock`.
        return functional.relu(self.norm2(self.conv2(out)) + self.shortcut(x[:, :, :: self.stride, :: self.stride]))


class ResNet(nn.Module):
    """ResNet-10 or -18: a 3x3 stem of stride 1 and no max-pool, four stages of `blocks` blocks, a global average, one linear layer.

    Input [b, in_channels, h, w], 8x8 pixels or more; `features` [b, 8 * width]; output [b, out_dim].
    """

    def __init__(self, in_channels: int, out_dim: int, blocks: int, width: int) -> None:
        super().__init__()
        groups, before = groups_of(width), width
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, 1, 1, bias=False), nn.GroupNorm(groups, width), nn.ReLU())
        stages: list[nn.Module] = []
        for stage in range(4):
            channels = width << stage
            for block in range(blocks):
                stages.append(ResidualBlock(before, channels, 2 if stage and not block else 1, groups))
                before = channels
        self.stages = nn.Sequential(*stages)
        self.linear = nn.Linear(before, out_dim)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What a probe reads: the average of the last stage, [b, 8 * width]."""
        out: torch.Tensor = self.stages(self.stem(x))
        return out.mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(self.features(x))
        return out


class VGG(nn.Module):
    """VGG-11 (1409.1556, configuration A) with group norm, and one linear layer in place of its three, as is usual for small images.

    Input [b, in_channels, h, w], 32x32 pixels or more; `features` [b, 8 * width * (h >> 5) * (w >> 5)]; output [b, out_dim].
    """

    def __init__(self, in_channels: int, height: int, width: int, out_dim: int, channels: int) -> None:
        super().__init__()
        groups, before = groups_of(channels), in_channels
        layers: list[nn.Module] = []
        for stage in VGG11:
            for multiple in stage:
                layers += [nn.Conv2d(before, multiple * channels, 3, padding=1), nn.GroupNorm(groups, multiple * channels), nn.ReLU()]
                before = multiple * channels
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(before * (height >> len(VGG11)) * (width >> len(VGG11)), out_dim)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What a probe reads: the last stage's output, flattened."""
        out: torch.Tensor = self.layers(x)
        return out.flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(self.features(x))
        return out


class ViT(VisionTransformer):
    """timm's ViT-tiny on patches of 4x4 pixels, without dropout. `features` [b, width]: the class token after the last norm."""

    def __init__(self, in_channels: int, height: int, width: int, out_dim: int, depth: int, channels: int) -> None:
        super().__init__(
            img_size=(height, width), patch_size=VIT_PATCH, in_chans=in_channels, num_classes=out_dim,
            embed_dim=channels, depth=depth, num_heads=VIT_HEADS,
        )  # fmt: skip
        for part in self.modules():
            if isinstance(part, Attention):
                part.fused_attn = False  # type: ignore[misc]  # final for TorchScript alone; the fused kernels have no second derivative

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What a probe reads: the class token, [b, width]."""
        out: torch.Tensor = self.forward_head(self.forward_features(x), pre_logits=True)
        return out


def resnet(name: str, in_channels: int, out_dim: int, width: int) -> ResNet:
    """`resnet10` or `resnet18`."""
    return ResNet(in_channels, out_dim, RESNET_BLOCKS[name], width)
