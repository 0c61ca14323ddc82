"""Backbones: sizes of their features, names that are unknown, images that do not fit."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from ddcore.errors import SpecError
from ddcore.networks.backbones import ResNet18, build_backbone, feature_dim
from ddcore.specs import BackboneSpec


@pytest.mark.parametrize(
    ("spec", "width"),
    [
        (BackboneSpec(name="resnet18", width=8), 64),
        (BackboneSpec(name="convnet", width=8, depth=2), 8 * 4 * 3),
        (BackboneSpec(name="resnet10t"), 512),
        (BackboneSpec(name="vit_tiny_patch16_224"), 192),
        (BackboneSpec(name="vit_tiny_patch4"), 192),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_features_of_small_images(spec: BackboneSpec, width: int, channels: int) -> None:
    size = (16, 16) if spec.name.startswith("vit") else (16, 12)
    backbone = build_backbone(spec, channels, size)
    assert feature_dim(backbone, channels, size) == width
    backbone.eval()
    assert backbone(torch.randn(3, channels, *size)).shape == (3, width)
    assert backbone.training is False


def test_the_vit_reads_patches_of_four_pixels_and_no_other_sides() -> None:
    backbone = build_backbone(BackboneSpec(name="vit_tiny_patch4"), 3, (64, 32))
    assert backbone.get_parameter("pos_embed").shape == (1, 16 * 8 + 1, 192)
    with pytest.raises(SpecError, match="patches of 4x4 pixels") as caught:
        build_backbone(BackboneSpec(name="vit_tiny_patch4"), 3, (32, 30))
    assert (caught.value.problems[0].loc, caught.value.problems[0].given) == (("teacher", "backbone", "name"), "32x30 pixels")


@pytest.mark.parametrize(
    ("name", "small"), [("vit_tiny_patch4", (16, 8)), ("vit_tiny_patch16_224", (16, 16)), ("eva02_tiny_patch14_224", (14, 28))]
)
def test_a_vit_told_to_reads_images_of_other_sizes_too_and_its_own_as_before(name: str, small: tuple[int, int]) -> None:
    size = (56, 28) if "14" in name else (32, 32)
    torch.manual_seed(0)
    one = build_backbone(BackboneSpec(name=name), 3, size).eval()
    torch.manual_seed(0)
    several = build_backbone(BackboneSpec(name=name), 3, size, any_size=True).eval()
    assert {key: tensor.shape for key, tensor in one.state_dict().items()} == {k: t.shape for k, t in several.state_dict().items()}
    images = torch.rand(2, 3, *size)
    torch.testing.assert_close(several(images), one(images), rtol=0, atol=1e-6)
    assert several(torch.rand(2, 3, *small)).shape == one(images).shape
    with pytest.raises(AssertionError, match="doesn't match model"):
        one(torch.rand(2, 3, *small))


def test_the_small_stem_keeps_the_resolution_and_the_rest_is_torchvisions() -> None:
    """With torchvision's weights in place, all stages after the stem compute what torchvision's do."""
    reference = torchvision.models.resnet18(weights=None).eval()
    ours = ResNet18(3, 64)
    state = {name: tensor for name, tensor in reference.state_dict().items() if not name.startswith(("conv1", "fc"))}
    left = ours.load_state_dict(state, strict=False)
    assert (left.missing_keys, left.unexpected_keys) == (["conv1.weight"], [])
    ours.eval()
    reference.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    reference.conv1.load_state_dict(ours.conv1.state_dict())
    reference.maxpool, reference.fc = nn.Identity(), nn.Identity()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours(images), reference(images))


@pytest.mark.parametrize("width", [4, 8])
def test_a_narrow_resnet_learns_from_large_images(width: int) -> None:
    """Channels last, as a teacher is trained: a fault of the library that ends the process, if it comes back."""
    backbone = ResNet18(3, width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for _ in range(5):
        backbone(torch.rand(2, 3, 96, 96).to(memory_format=torch.channels_last)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters())


def test_statistics_of_batch_norm_belong_to_the_state() -> None:
    state = ResNet18(1, 4).state_dict()
    assert {"bn1.running_mean", "layer4.1.bn2.running_var"} <= set(state)


def test_torchvision_models_lose_their_classifier_and_read_grey_images() -> None:
    backbone = build_backbone(BackboneSpec(name="mobilenet_v3_small"), 1, (32, 32), "torchvision").eval()
    assert feature_dim(backbone, 1, (32, 32)) == 1024
    images = torch.rand(2, 1, 32, 32)
    colour = build_backbone(BackboneSpec(name="mobilenet_v3_small"), 3, (32, 32), "torchvision").eval()
    colour.load_state_dict({name.removeprefix("model."): tensor for name, tensor in backbone.state_dict().items()})
    torch.testing.assert_close(backbone(images), colour(images.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(("name", "library", "close"), [("resnet19", "own", "resnet18"), ("resnt50", "torchvision", "resnet50")])
def test_unknown_names_are_answered_with_close_ones(name: str, library: str, close: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_backbone(BackboneSpec(name=name), 3, (16, 16), library)  # type: ignore[arg-type]
    (problem,) = caught.value.problems
    assert problem.loc == ("teacher", "backbone", "name")
    assert problem.given == name
    assert close in problem.allowed


def test_images_a_model_cannot_read_are_an_invalid_spec() -> None:
    backbone = build_backbone(BackboneSpec(name="vit_b_32"), 3, (16, 16), "torchvision")
    with pytest.raises(SpecError, match="VisionTransformer cannot read"):
        feature_dim(backbone, 3, (16, 16))


def test_a_timm_model_by_its_full_name() -> None:
    assert timm.is_model("resnet10t.c3_in1k")
    assert feature_dim(build_backbone(BackboneSpec(name="resnet10t.c3_in1k"), 3, (16, 16)), 3, (16, 16)) == 512
