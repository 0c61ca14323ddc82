"""A change of core changes no result: presets' matching by every core, on images of their own size.

In float64 every core gives the same set to rounding. In float32 that holds until an activation lies so near to zero that cores disagree
on its sign: a flip moves a gradient by a thousandth, and Adam, which divides by the gradient's own size, moves some pixels the other
way. The smoke preset (few activations, plain SGD) is compared in float32, the CPU's small preset in float64.
"""

import functools

import pytest
import torch

from ddcore.events import Reporter
from ddcore.experts.store import Trajectories, write_trajectories
from ddcore.matching.adjoint import Inner, batches_of, run_inner
from ddcore.matching.blocks.compiled import CompiledBlocks
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.blocks.native import native_blocks
from ddcore.matching.cores import Core
from ddcore.matching.explicit import ExplicitConvNet
from ddcore.matching.loop import State, match
from ddcore.networks.flat import build_student
from ddcore.specs import DistillSpec
from ddcore.task import generator

DIMS, IMAGES = 24, 40
SHAPES = {"smoke": (1, 8, 8), "cpu-small": (3, 32, 32)}
ITERATIONS = 8

CORES = {
    "generic": Core,
    "eager": lambda network: ExplicitConvNet(network, EagerBlocks()),
    "native": lambda network: ExplicitConvNet(network, native_blocks()),
    "compiled": lambda network: ExplicitConvNet(network, CompiledBlocks()),
}


@functools.cache
def matched(folder, preset, core, dtype):
    """Images, targets and rate after ITERATIONS by a core, and how far the images moved; one start and one expert for all cores."""
    spec, shape, make = DistillSpec(preset=preset), SHAPES[preset], generator(0, "cores")
    method = spec.method.model_copy(update={"iterations": ITERATIONS})
    network = build_student(spec.student, shape, DIMS)
    images, targets = torch.randn(IMAGES, *shape, generator=make), torch.randn(IMAGES, DIMS, generator=make)
    path = [network.init(make)]
    for _ in range(method.max_start_epoch + method.expert_epochs):
        batches = batches_of(IMAGES, 20, 6, make)
        path.append(run_inner(Inner(Core(network), images, targets, torch.tensor(0.3), batches), path[-1]).end)
    network.module.to(dtype)
    work = folder / f"{preset}-{core}-{dtype}"
    work.mkdir()
    write_trajectories(work, torch.stack(path)[None].to(dtype), "float32", "{}")
    start = (images[:16] + torch.randn(16, *shape, generator=make)).to(dtype)
    rate = torch.tensor(method.initial_rate or 0.3, dtype=dtype)
    state = State.begin(method, start.clone(), targets[:16].to(dtype), rate, generator(2, "matching"))
    match(CORES[core](network), Trajectories([work]), method, state, work, Reporter())
    return state.images, state.targets, state.rate, (state.images - start).norm()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cores")


@pytest.mark.parametrize("preset", SHAPES)
@pytest.mark.parametrize("core", ["eager", "native"])
def test_in_float64_the_set_is_the_same_to_rounding(folder, preset, core):
    expected, found = (matched(folder, preset, name, torch.float64) for name in ("generic", core))
    assert (found[0] - expected[0]).norm() < 1e-8 * expected[3]
    assert torch.allclose(found[1], expected[1], rtol=1e-9, atol=1e-10)
    assert torch.allclose(found[2], expected[2], rtol=1e-9)


@pytest.mark.parametrize("core", ["eager", "native", "compiled"])
def test_in_float32_the_set_is_the_same_to_float_tolerance(folder, core):
    expected, found = (matched(folder, "smoke", name, torch.float32) for name in ("generic", core))
    assert expected[3] > 1e-3
    assert (found[0] - expected[0]).norm() < 1e-4 * expected[3]
    assert torch.allclose(found[1], expected[1], atol=1e-5)
    assert torch.allclose(found[2], expected[2], rtol=1e-5)
