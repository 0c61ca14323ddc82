"""Names and shapes of a backbone's tensors, without torch: a checkpoint can be refused where no engine is installed."""

from ddcore.networks.names import PATCH
from ddcore.specs import BackboneSpec

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(spec: BackboneSpec, in_channels: int, image_size: tuple[int, int]) -> Shapes | None:
    """The state dict of `build_backbone`, in its order; None for a timm model, whose shapes only timm knows.

    image_size (height, width) shapes the ViT's positions, one for each patch, and nothing else.
    """
    if spec.name == "resnet18":
        return _resnet18(spec.width, in_channels)
    if spec.name == "convnet":
        return _convnet(spec.width, spec.depth, in_channels)
    if spec.name == "vit_tiny_patch4":
        return _vit_tiny(in_channels, (image_size[0] // PATCH) * (image_size[1] // PATCH))
    return None


def _batch_norm(name: str, channels: int) -> Shapes:
    vectors: Shapes = {f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return {**vectors, f"{name}.num_batches_tracked": ()}


def _resnet18(width: int, in_channels: int) -> Shapes:
    shapes: Shapes = {"conv1.weight": (width, in_channels, 3, 3), **_batch_norm("bn1", width)}
    before = width
    for stage in range(4):
        channels = width * 2**stage
        for block in range(2):
            name = f"layer{stage + 1}.{block}"
            shapes[f"{name}.conv1.weight"] = (channels, before, 3, 3)
            shapes |= _batch_norm(f"{name}.bn1", channels)
            shapes[f"{name}.conv2.weight"] = (channels, channels, 3, 3)
            shapes |= _batch_norm(f"{name}.bn2", channels)
            if before != channels:
                shapes[f"{name}.downsample.0.weight"] = (channels, before, 1, 1)
                shapes |= _batch_norm(f"{name}.downsample.1", channels)
            before = channels
    return shapes


def _convnet(width: int, depth: int, in_channels: int) -> Shapes:
    shapes: Shapes = {}
    for block in range(depth):
        convolution, norm = f"blocks.{4 * block}", f"blocks.{4 * block + 1}"  # then ReLU and pooling, which have no tensors
        shapes[f"{convolution}.weight"] = (width, in_channels if block == 0 else width, 3, 3)
        shapes |= {f"{convolution}.bias": (width,), f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return shapes


def _vit_tiny(in_channels: int, patches: int, width: int = 192, blocks: int = 12) -> Shapes:
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, patches + 1, width)}
    shapes |= {"patch_embed.proj.weight": (width, in_channels, PATCH, PATCH), "patch_embed.proj.bias": (width,)}
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in range(blocks):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            name, shape = f"blocks.{block}.{part}", linear.get(part, (width,))
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}
