"""The ConvNet against its description, layer by layer."""

import pytest
import torch
from torch.nn import functional

from ddcore.networks.convnet import ConvNet
from ddcore.networks.student_sizes import num_parameters
from ddcore.specs import StudentSpec


def slowly(net, x):
    """Convolution, normalisation of each map by itself, scale and shift, ReLU, mean of 2x2 squares: written out."""
    p = dict(net.named_parameters())
    for block in range(len(net.blocks) // 4):
        x = functional.conv2d(x, p[f"blocks.{4 * block}.weight"], p[f"blocks.{4 * block}.bias"], padding=1)
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        scale, shift = (p[f"blocks.{4 * block + 1}.{name}"].view(1, -1, 1, 1) for name in ("weight", "bias"))
        x = ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp_min(0)
        h, w = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        x = (x[:, :, 0:h:2, 0:w:2] + x[:, :, 1:h:2, 0:w:2] + x[:, :, 0:h:2, 1:w:2] + x[:, :, 1:h:2, 1:w:2]) / 4
    features = x.flatten(1)
    return features, features @ p["linear.weight"].t() + p["linear.bias"]


@pytest.mark.parametrize(("shape", "depth"), [((1, 8, 8), 3), ((3, 9, 14), 2), ((3, 5, 4), 1)])
def test_features_and_output_equal_the_written_out_network(shape, depth):
    torch.manual_seed(0)
    net = ConvNet(*shape, out_dim=5, depth=depth, channels=6).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)  # scales and shifts too, which start at one and zero
    x = torch.randn(4, *shape, dtype=torch.float64)
    features, out = slowly(net, x)
    assert features.shape == (4, net.feature_dim)
    assert torch.allclose(net.features(x), features, atol=1e-12)
    assert torch.allclose(net(x), out, atol=1e-12)
    expected = num_parameters(StudentSpec(depth=depth, width=6), shape, 5)
    assert sum(p.numel() for p in net.parameters()) == expected


def test_without_a_linear_layer_the_output_is_the_features():
    net = ConvNet(1, 8, 8, out_dim=0, depth=2, channels=4)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(net(x), net.features(x))
    assert net(x).shape == (2, 4 * 2 * 2)


def test_too_many_halvings_are_refused():
    with pytest.raises(ValueError, match="4 halvings of a 8x30 image"):
        ConvNet(1, 8, 30, out_dim=2, depth=4)
