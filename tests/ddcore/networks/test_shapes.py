"""The torch-free table of shapes equals the state dict of the real network."""

import pytest

from ddcore.networks.backbones import build_backbone
from ddcore.networks.shapes import expected_shapes
from ddcore.specs import BackboneSpec


@pytest.mark.parametrize(
    "spec",
    [
        BackboneSpec(width=4),
        BackboneSpec(width=16),
        BackboneSpec(name="convnet", width=6, depth=1),
        BackboneSpec(name="convnet", width=5, depth=3),
        BackboneSpec(name="vit_tiny_patch4"),
    ],
)
@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (12, 16))])
def test_shapes_equal_the_state_dict(spec: BackboneSpec, channels: int, size: tuple[int, int]) -> None:
    state = build_backbone(spec, channels, size).state_dict()
    expected = expected_shapes(spec, channels, size)
    assert expected is not None
    assert list(expected.items()) == [(name, tuple(tensor.shape)) for name, tensor in state.items()]


def test_only_timm_knows_timms_shapes() -> None:
    assert expected_shapes(BackboneSpec(name="vit_tiny_patch16_224"), 3, (32, 32)) is None
