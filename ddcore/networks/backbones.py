"""Teachers' encoders: a ResNet-18 and a ViT for small images, the students' ConvNet less its last layer, any of timm's or torchvision's."""

import contextlib
import difflib
from typing import Any, Literal

import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional

from ddcore.errors import Problem, SpecError
from ddcore.networks.convnet import ConvNet
from ddcore.networks.names import OWN, PATCH, check_patches
from ddcore.specs import BackboneSpec

Library = Literal["own", "timm", "torchvision"]  # whose model a name means; "own": one of OWN, built here, or timm's


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (1512.03385, figure 2)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        self.stride = stride
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        # A 1x1 convolution of stride 2, but for the way: on a CPU that one's backward pass writes beyond its memory (torch 2.14) for
        # channels-last maps of 64 pixels or more and at most 8 channels. The numbers are the same, bit for bit.
        return functional.relu(self.bn2(self.conv2(out)) + self.downsample(x[:, :, :: self.stride, :: self.stride]))


class ResNet18(nn.Module):
    """ResNet-18 with the small-image stem: one 3x3 convolution of stride 1, no max-pool (SimCLR, 2002.05709, appendix B.9).

    Input [b, in_channels, h, w]; output: global average of the last stage, [b, 8 * width]. Names are torchvision's.
    """

    def __init__(self, in_channels: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before = width
        for stage in range(4):
            channels = width * 2**stage
            blocks = nn.Sequential(BasicBlock(before, channels, 1 if stage == 0 else 2), BasicBlock(channels, channels, 1))
            self.add_module(f"layer{stage + 1}", blocks)
            before = channels
        self.feature_dim = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            out = self.get_submodule(f"layer{stage}")(out)
        return out.mean((2, 3))


class _Colour(nn.Module):
    """Lets a model made for three channels read grey images: the channel is shown to it three times."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(x.expand(-1, 3, -1, -1))
        return out


def build_backbone(
    spec: BackboneSpec, in_channels: int, image_size: tuple[int, int], library: Library = "own", any_size: bool = False
) -> nn.Module:
    """A new encoder: images [b, in_channels, *image_size] to features [b, d]. Draws its weights from PyTorch's global generator.

    any_size: whether it is to read images of other sizes too, in whole patches; a ViT then resamples its positions, and its tensors
    and what it makes of `image_size` are the same. A ConvNet and some of timm's models cannot: `check_local_crops` knows them.
    Raises `SpecError` if no model has that name, or it cannot read such images.
    """
    if library == "torchvision":
        return torchvision_backbone(spec.name, in_channels)
    if library == "own" and spec.name == "resnet18":
        return ResNet18(in_channels, spec.width)
    if library == "own" and spec.name == "convnet":
        return ConvNet(in_channels, *image_size, out_dim=0, depth=spec.depth, channels=spec.width)
    if library == "own" and spec.name == "vit_tiny_patch4":
        return vit_tiny_patch4(in_channels, image_size, any_size)
    return timm_backbone(spec.name, in_channels, image_size, any_size=any_size)


def vit_tiny_patch4(in_channels: int, image_size: tuple[int, int], any_size: bool = False) -> nn.Module:
    """ViT-Tiny (2012.12877, table 1: 12 blocks, 192 channels, 3 heads) on patches of 4x4 pixels; the class token's features, [b, 192].

    timm's model of 16x16 patches, built for these images. Raises `SpecError` if a side is not a multiple of 4.
    """
    if problems := check_patches(BackboneSpec(name="vit_tiny_patch4"), *image_size):
        raise SpecError(problems)
    options: dict[str, Any] = {"img_size": image_size, "patch_size": PATCH, "num_classes": 0, "in_chans": in_channels}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=any_size, **options)
    return model


def timm_backbone(
    name: str, in_channels: int, image_size: tuple[int, int], pretrained: bool = False, cache: str | None = None, any_size: bool = False
) -> nn.Module:
    """timm's model without its classifier, built for this image size where the model asks for one. Errors of a download pass through.

    any_size: as for `build_backbone`.
    """
    if not timm.is_model(name):
        raise _unknown(name, [*OWN, *timm.list_models()], "timm")
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0, "in_chans": in_channels, "cache_dir": cache}
    attempts: list[dict[str, Any]] = [{"img_size": image_size, "dynamic_img_size": True}] if any_size else []
    try:
        for sizes in [*attempts, {"img_size": image_size}]:
            with contextlib.suppress(TypeError):  # it has no such argument: convolutional models take images of any size
                model: nn.Module = timm.create_model(name, **sizes, **options)
                return model
        model = timm.create_model(name, **options)
    except (ValueError, AssertionError) as error:
        raise _does_not_fit(name, in_channels, image_size, error) from error
    return model


def torchvision_backbone(name: str, in_channels: int) -> nn.Module:
    """torchvision's classification model, its last linear layer replaced by the identity; grey images are shown in three channels."""
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise _unknown(name, torchvision.models.list_models(module=torchvision.models), "torchvision")
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    drop_classifier(model)
    return _Colour(model) if in_channels == 1 else model


def drop_classifier(model: nn.Module) -> None:
    """Replace the last linear layer of a torchvision model, whatever it is called, by the identity."""
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, leaf = last.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())


@torch.no_grad()
def feature_dim(backbone: nn.Module, in_channels: int, image_size: tuple[int, int]) -> int:
    """Width d of the features; found by showing the encoder one blank image. Raises `SpecError` if it cannot read it."""
    training = backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    try:
        out = backbone(torch.zeros(1, in_channels, *image_size, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _does_not_fit(type(getattr(backbone, "model", backbone)).__name__, in_channels, image_size, error) from error
    backbone.train(training)
    if out.ndim != 2:
        given = f"an output of shape {tuple(out.shape)}"
        raise SpecError([Problem(("teacher", "backbone", "name"), "the encoder does not give one vector an image", given, "[images, d]")])
    return int(out.shape[1])


def _unknown(name: str, known: list[str], library: str) -> SpecError:
    close = difflib.get_close_matches(name, known, n=5) or list(OWN)
    return SpecError([Problem(("teacher", "backbone", "name"), f"{library} has no model called {name!r}", name, ", ".join(close))])


def _does_not_fit(name: str, in_channels: int, image_size: tuple[int, int], error: Exception) -> SpecError:
    given = f"{in_channels} channels of {image_size[0]}x{image_size[1]}"
    message = f"{name} cannot read such images: {error}"
    return SpecError([Problem(("teacher", "backbone", "name"), message, given, "resnet18 and convnet read images of any size")])
