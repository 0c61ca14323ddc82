"""Where training begins: each layer's first parameters, drawn from a generator and from nothing else."""

import math

import torch
from torch import nn

from ddcore.networks.students import ViT

VIT_STD = 0.02
TOKEN_STD = 1e-6


def draw_layer(network: nn.Module, layer: nn.Module, generator: torch.Generator) -> list[torch.Tensor]:
    """The first parameters of one layer of `network` (those it owns itself, in their order), each flat float32 on the CPU.

    PyTorch's defaults: convolution and linear weights and biases are uniform in +-1/sqrt(fan_in), norms begin at scale one, shift
    zero. In a ViT timm's: linear weights and `pos_embed` are normal with deviation 0.02, linear biases zero, and `cls_token` is normal
    with deviation 1e-6; its patches' convolution and its norms are PyTorch's.
    Raises `ValueError` for a layer of another kind.
    """
    own = list(layer.named_parameters(recurse=False))
    if isinstance(layer, ViT):
        return [_cut_normal(p, generator) if name == "pos_embed" else TOKEN_STD * _normal(p, generator) for name, p in own]
    if isinstance(layer, nn.Linear) and isinstance(network, ViT):
        return [_cut_normal(p, generator) if name == "weight" else torch.zeros(p.numel()) for name, p in own]
    if isinstance(layer, nn.Conv2d | nn.Linear):
        bound = 1.0 / math.sqrt(layer.weight[0].numel())
        return [(torch.rand(p.numel(), generator=generator) * 2 - 1) * bound for _, p in own]
    if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
        return [torch.full((p.numel(),), 1.0 if name == "weight" else 0.0) for name, p in own]
    raise ValueError(f"no initialisation is known for {type(layer).__name__}")


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.numel(), generator=generator)


def _cut_normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return nn.init.trunc_normal_(torch.empty(like.numel()), std=VIT_STD, generator=generator)
