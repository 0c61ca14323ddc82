"""A network as a function of one flat parameter vector: what trajectories are made of."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call

from ddcore.networks.convnet import ConvNet
from ddcore.networks.initial import draw_layer
from ddcore.networks.student_sizes import VIT_PATCH
from ddcore.networks.students import VGG, ViT, resnet
from ddcore.specs import VIT_HEADS, StudentSpec


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
        own = [(name, sum(p.numel() for p in part.parameters(recurse=False))) for name, part in module.named_modules()]
        self.layer_sizes = [size for _, size in own if size]
        self.layer_names = [name or type(module).__name__ for name, size in own if size]

    def to(self, device: torch.device) -> "FlatNetwork":
        """Move the wrapped module (its own parameters are never used, but devices must agree)."""
        self.module.to(device)
        return self

    def spread(self, rates: torch.Tensor) -> torch.Tensor:
        """Numbers of layers [num_layers] as numbers of their parameters [num_parameters]."""
        return torch.cat([rate.expand(size) for rate, size in zip(rates, self.layer_sizes, strict=True)])

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
        """Where training begins, drawn from `generator` (CPU): theta float32 [num_parameters] on the CPU; see `initial.draw_layer`."""
        layers = [module for module in self.module.modules() if list(module.parameters(recurse=False))]
        return torch.cat([part for layer in layers for part in draw_layer(self.module, layer, generator)])


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
    size, largest = spec.width, spec.width * height * width
    if spec.name == "convnet":
        return FlatNetwork(ConvNet(channels, height, width, out_dim, spec.depth, size), largest)
    if spec.name == "vgg11":
        return FlatNetwork(VGG(channels, height, width, out_dim, size), largest)
    if spec.name == "vit_tiny":
        tokens = 1 + height * width // VIT_PATCH**2
        return FlatNetwork(ViT(channels, height, width, out_dim, spec.depth, size), tokens * max(4 * size, VIT_HEADS * tokens))
    return FlatNetwork(resnet(spec.name, channels, out_dim, size), largest)
