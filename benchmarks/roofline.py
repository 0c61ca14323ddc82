"""What an inner step of a ConvNet cannot do without, counted by formula: floating-point operations, and bytes to and from memory.

A convolution or linear layer of an inner step is run nine times, each with the same number of operations:

    gradient      u = W h | dl/dW = h^T P_u | P_h = W^T P_u
    pull-back     u_dot = W h_dot + W_dot h | Q_h = W^T Q_u + W_dot^T P_u | dS/dW = h^T Q_u + h_dot^T P_u

and the first layer six times: its input has no tangent, and its P_h is not wanted. (Where nothing is kept, u and P_h are made again.)
Bytes are those of a perfect implementation: each sum of products one operation, the norm, ReLU and pooling of a block one operation,
and every operation reads its operands once and writes its result once. Maps in bfloat16 count two bytes a number, parameters and
their gradients four. (The linear layer, a few percent, is counted likewise, though it stays in float32.)
"""

from dataclasses import dataclass

from benchmarks.machine import Peaks


@dataclass(frozen=True)
class Sizes:
    """A ConvNet and the batch that it sees: images [batch, channels, height, width], targets [batch, dims]."""

    batch: int
    channels: int
    height: int
    width: int
    dims: int
    depth: int
    maps: int  # channels of every block


@dataclass(frozen=True)
class Operation:
    """Something that goes to memory and back once."""

    name: str
    flops: float
    maps: float  # numbers read and written: of images, maps, features and outputs
    parameters: float = 0.0  # the same of parameters and their gradients

    def seconds(self, peaks: Peaks, map_bytes: int, parameter_bytes: int) -> float:
        """The least it can take: as long as its arithmetic or its memory traffic takes, whichever is more."""
        moved = self.maps * map_bytes + self.parameters * parameter_bytes
        return max(self.flops / peaks.flops, moved / peaks.bandwidth)


def operations(sizes: Sizes, kept: bool = True) -> list[Operation]:
    """All of one inner step and its pull-back; without `kept`, with what the pull-back repeats."""
    found: list[Operation] = []
    channels, height, width = sizes.channels, sizes.height, sizes.width
    parameters = 0.0
    for depth in range(sizes.depth):
        weight = 9.0 * channels * sizes.maps
        h, u = (float(sizes.batch * height * width * count) for count in (channels, sizes.maps))
        height, width, channels = height // 2, width // 2, sizes.maps
        pooled = float(sizes.batch * height * width * channels)
        found += _layer(f"conv {depth + 1}", 2 * weight * u / sizes.maps, h, u, weight, depth == 0, kept)
        found += _block(f"block {depth + 1}", u, pooled, kept)
        parameters += weight + 3 * sizes.maps
    features = channels * height * width
    weight = float(features * sizes.dims)
    rows, out = float(sizes.batch * features), float(sizes.batch * sizes.dims)
    found += _layer("linear", 2 * weight * sizes.batch, rows, out, weight, False, kept)
    parameters += weight + sizes.dims
    # theta - eta g; a - eta d_theta; <g, a> comes with the pass.
    return [*found, *(Operation(name, 2 * parameters, 0.0, 3 * parameters) for name in ("update", "adjoint update"))]


def passes_flops(sizes: Sizes, kept: bool = True) -> float:
    """Operations of the convolutions and the linear layer alone, one inner step and its pull-back: nearly all there are."""
    return sum(one.flops for one in operations(sizes, kept) if one.name.startswith(("conv", "linear")))


def least_seconds(sizes: Sizes, steps: int, peaks: Peaks, map_bytes: int, parameter_bytes: int, kept: bool = True) -> float:
    """The roofline: what `steps` inner steps and their pull-backs take where every operation is at one limit or the other."""
    return steps * sum(one.seconds(peaks, map_bytes, parameter_bytes) for one in operations(sizes, kept))


def _layer(name: str, flops: float, h: float, u: float, weight: float, first: bool, kept: bool) -> list[Operation]:
    """A layer u = W h: h, u and weight are counts of numbers, flops those of one product."""
    both = 1 if first else 2  # terms of a sum that has a tangent of h in it
    found = [Operation(f"{name}, {what}", flops, h + u, weight) for what in ("forward", "weight")]
    if not kept:
        found.append(found[0])
    if not first:
        found += [Operation(f"{name}, input", flops, h + u, weight)] * (1 if kept else 2)
    return [
        *found,
        Operation(f"{name}, tangent", both * flops, both * h + u, both * weight),
        Operation(f"{name}, second input", 2 * flops, 2 * u + h, 2 * weight),
        Operation(f"{name}, second weight", both * flops, both * (h + u), weight),
    ]


def _block(name: str, u: float, h: float, kept: bool) -> list[Operation]:
    """Norm, ReLU and pooling from u to h; about ten operations a number, which are never the limit."""
    forward, backward = Operation(f"{name}, forward", 10 * u, u + h), Operation(f"{name}, backward", 10 * u, 2 * u + h)
    return [
        *[forward, backward] * (1 if kept else 2),
        Operation(f"{name}, tangent", 10 * u, 2 * u + h),
        Operation(f"{name}, second", 20 * u, 3 * u + 2 * h),
    ]
