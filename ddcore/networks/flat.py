"""A network as a function of one flat parameter vector: what trajectories are made of."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call

from ddcore.networks.convnet import ConvNet
from ddcore.specs import StudentSpec


class FlatNetwork:
    """Wraps a module without buffers so that it is called as `network(theta, x)` with theta of shape [num_parameters].

    largest_map: floats of an image's largest feature map, if known.
    """

    def __init__(self, module: nn.Module, largest_map: int | None = None) -> None:
        if any(True for _ in module.buffers()):
            raise ValueError("a matched student has parameters only: running statistics are no function of them")
        self.module, self.largest_map = module, largest_map
        self.names = [name for name, _ in module.named_parameters()]
        self.shapes = [tuple(p.shape) for p in module.parameters()]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.num_parameters = sum(self.sizes)
        # A layer is a module with parameters of its own; they lie side by side in theta.
        own = [sum(p.numel() for p in part.parameters(recurse=False)) for part in module.modules()]
        self.layer_sizes = [size for size in own if size]

    def to(self, device: torch.device) -> "FlatNetwork":
        """Move the wrapped module (its own parameters are never used, but devices must agree)."""
        self.module.to(device)
        return self

    def split(self, theta: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of theta [num_parameters], by parameter name."""
        parts = theta.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def __call__(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The module's output for images x [b, c, h, w] (normalised): [b, out_dim]."""
        out: torch.Tensor = functional_call(self.module, self.split(theta), (x,))
        return out

    def features(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The penultimate features for images x [b, c, h, w]: [b, feature_dim]."""
        prefixed = {f"inner.{name}": value for name, value in self.split(theta).items()}
        out: torch.Tensor = functional_call(_Features(self.module), prefixed, (x,))
        return out

    def init(self, generator: torch.Generator) -> torch.Tensor:
        """PyTorch's default initialisation, drawn from `generator` (CPU): theta float32 [num_parameters] on the CPU.

        Convolution and linear weights and biases are uniform in +-1/sqrt(fan_in); norms begin at scale one, shift zero.
        """
        parts: list[torch.Tensor] = []
        for module in self.module.modules():
            own = list(module.named_parameters(recurse=False))
            if not own:
                continue
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = 1.0 / math.sqrt(module.weight[0].numel())
                parts += [(torch.rand(p.numel(), generator=generator) * 2 - 1) * bound for _, p in own]
            elif isinstance(module, nn.GroupNorm):
                parts += [torch.full((p.numel(),), 1.0 if name == "weight" else 0.0) for name, p in own]
            else:
                raise ValueError(f"no initialisation is known for {type(module).__name__}")
        return torch.cat(parts)


class _Features(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner.features(x)  # type: ignore[operator]
        return out


def build_student(spec: StudentSpec, image_shape: Sequence[int], out_dim: int) -> FlatNetwork:
    """The student of `spec` for images of shape (c, h, w) and targets of `out_dim` dimensions."""
    channels, height, width = image_shape
    return FlatNetwork(ConvNet(channels, height, width, out_dim, spec.depth, spec.width), spec.width * height * width)
