"""Names and shapes of a backbone's tensors, without torch: a checkpoint can be refused where no engine is installed."""

from ddcore.specs import BackboneSpec

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(spec: BackboneSpec, in_channels: int, image_size: tuple[int, int]) -> Shapes | None:
    """The state dict of `build_backbone`, in its order; None for a timm model, whose shapes only timm knows.

    image_size (height, width) shapes no tensor of the two known backbones: both end in an average or in no linear layer.
    """
    if spec.name == "resnet18":
        return _resnet18(spec.width, in_channels)
    if spec.name == "convnet":
        return _convnet(spec.width, spec.depth, in_channels)
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
