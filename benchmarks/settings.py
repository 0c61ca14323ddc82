"""What the unroll benchmark runs: sizes from the command line or from a preset, and cores by name."""

import argparse
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.full_unroll import Problem
from benchmarks.machine import DTYPES
from benchmarks.roofline import Sizes
from ddcore.data.builtins import builtin
from ddcore.matching.adjoint import batches_of
from ddcore.matching.blocks.compiled import compiled_blocks
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.blocks.interface import Blocks
from ddcore.matching.blocks.native import native_blocks
from ddcore.matching.blocks.triton import triton_blocks
from ddcore.matching.cores import Core
from ddcore.matching.explicit import ExplicitConvNet, core_of
from ddcore.matching.precision import half_core
from ddcore.networks.backbones import build_backbone, feature_dim
from ddcore.networks.convnet import ConvNet
from ddcore.networks.flat import FlatNetwork
from ddcore.presets import PRESETS
from ddcore.specs import DistillSpec, GivenTeacherSpec, MKDTSpec
from ddcore.task import generator
from ddcore.threads import SMALL, cores

CIFAR = "cifar"  # the sizes of the published setting, with a smaller batch: what the options' defaults are
CORES = ("auto", "generic", "eager", "native", "compiled", "triton")
RATE = 0.01  # small enough for any random problem to stay finite


@dataclass(frozen=True)
class Setting:
    """One thing to measure."""

    sizes: Sizes
    images: int
    steps: tuple[int, ...]
    momentum: float
    dtype: str
    device: torch.device
    core: str

    def problem(self, network: FlatNetwork, steps: int) -> Problem:
        """Random images and targets, two random initialisations for start and goal."""
        size, dtype, device = self.sizes, DTYPES[self.dtype].tensors, self.device
        random = generator(0, "benchmark")
        start, goal = (network.init(random).to(device, dtype) for _ in range(2))
        images = torch.randn(self.images, size.channels, size.height, size.width, generator=random).to(device, dtype)
        targets = torch.randn(self.images, size.dims, generator=random).to(device, dtype)
        batches = [rows.to(device) for rows in batches_of(self.images, size.batch, steps, random)]
        return Problem(start, goal, images, targets, torch.tensor(RATE, dtype=dtype, device=device), batches, self.momentum)


def flat_convnet(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> FlatNetwork:
    """A student of these sizes."""
    module = ConvNet(sizes.channels, sizes.height, sizes.width, sizes.dims, sizes.depth, sizes.maps)
    return FlatNetwork(module.to(device, dtype), sizes.maps * sizes.height * sizes.width)


def threads_of(sizes: Sizes) -> int:
    """As `ddcore.threads.threads_for` decides."""
    return 1 if sizes.maps * sizes.height * sizes.width * sizes.batch <= SMALL else cores()


def make_core(name: str, network: FlatNetwork, device: torch.device, half: bool = False) -> Core:
    """The core called `name` in CORES; `auto` is the one that the engine takes; half: with its convolutions in bfloat16.

    Raises SystemExit where this machine has none such.
    """
    if half:
        return half_core(make_core(name, network, device))
    if name == "auto":
        return core_of(network, device)
    return Core(network) if name == "generic" else ExplicitConvNet(network, _blocks(name, device))


def _blocks(name: str, device: torch.device) -> Blocks:
    blocks: Blocks | None = None
    if name == "eager":
        blocks = EagerBlocks()
    elif name == "native" and device.type == "cpu":
        blocks = native_blocks()
    elif name == "compiled":
        blocks = compiled_blocks(device)
    elif name == "triton" and device.type == "cuda":
        blocks = triton_blocks(device)
    if blocks is None:
        raise SystemExit(f"--core {name}: there are no such blocks for {device.type} on this machine; try --core auto")
    return blocks


def setting(options: argparse.Namespace, device: torch.device, dtype: str) -> Setting:
    """From the command line; what is not said there comes from the preset. dtype: a name in DTYPES."""
    base = _cifar() if options.preset == CIFAR else _preset(options.preset)
    given = {"depth": options.depth, "maps": options.width, "height": options.size, "width": options.size}
    given |= {"channels": options.channels, "dims": options.dims, "batch": options.batch}
    sizes = replace(base["sizes"], **{name: value for name, value in given.items() if value is not None})
    return Setting(
        sizes,
        # Where a batch is asked for that a preset's images cannot fill, there are as many images.
        max(base["images"], sizes.batch),
        tuple(options.steps or base["steps"]),
        base["momentum"] if options.momentum is None else options.momentum,
        dtype,
        device,
        options.core,
    )


def _cifar() -> dict[str, Any]:
    sizes = Sizes(batch=64, channels=3, height=32, width=32, dims=512, depth=3, maps=128)
    return {"sizes": sizes, "images": 64, "steps": (5, 20), "momentum": 0.0}


def _preset(name: str) -> dict[str, Any]:
    spec = DistillSpec.model_validate({"preset": name, "dataset": PRESETS[name].get("dataset", "cifar10-train")})
    method, teacher = spec.method, spec.teacher
    if not isinstance(method, MKDTSpec) or isinstance(teacher, GivenTeacherSpec):
        raise SystemExit(f"--preset {name} matches no trajectories")
    shape = builtin(spec.dataset).image_shape
    dims = feature_dim(build_backbone(teacher.backbone, shape[0], shape[1:]), shape[0], shape[1:])
    batch = min(method.batch_size, spec.num_images)
    sizes = Sizes(batch, *shape, dims=dims, depth=spec.student.depth, maps=spec.student.width)
    return {"sizes": sizes, "images": spec.num_images, "steps": (method.inner_steps,), "momentum": method.inner_momentum}
