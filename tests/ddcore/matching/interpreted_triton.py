"""Prints, as JSON, how far the Triton kernels are from the eager blocks and from automatic differentiation.

Run by `test_triton.py` in a process of its own, where TRITON_INTERPRET=1 is set before anything imports Triton. An argument replaces
the norm's epsilon, in the kernels alone.
"""

import json
import sys

import torch

from ddcore.matching.blocks import triton_kernels
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.blocks.triton import triton_blocks
from ddcore.matching.blocks.triton_kernels import TritonBlocks
from ddcore.matching.cores import Core
from ddcore.matching.explicit import ExplicitConvNet
from ddcore.matching.precision import HalfBlocks
from ddcore.networks.flat import build_student
from ddcore.specs import StudentSpec
from ddcore.task import generator
from tests.ddcore.matching.unrolled import adjoint_errors

CASES = {
    "even": (2, 5, 8, 6),
    "odd": (3, 9, 5, 7),  # and channels that do not fill a program's
    "one channel": (1, 1, 5, 6),
    "several programs": (1, 34, 2, 3),
    "several tiles": (1, 3, 33, 32),
    "dead": (2, 4, 4, 4),
    "flat": (2, 3, 4, 4),
}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def inputs_of(name):
    b, c, h, w = CASES[name]
    make = generator(0, "blocks", name)
    u, u_dot = (torch.randn(b, c, h, w, generator=make, dtype=torch.float64) + 1.5 for _ in range(2))
    p_h, q_h = (torch.randn(b, c, h // 2, w // 2, generator=make, dtype=torch.float64) for _ in range(2))
    scale, shift, scale_dot, shift_dot = (torch.randn(c, generator=make, dtype=torch.float64) for _ in range(4))
    if name == "dead":
        shift[:2] = -100.0
    if name == "flat":
        u[0] = 0.5
    return [u, u_dot, p_h, q_h], [scale, shift, scale_dot, shift_dot]


def results(blocks, maps, vectors):
    u, u_dot, p_h, q_h = maps
    scale, shift, scale_dot, shift_dot = vectors
    given = [t.clone() for t in (*maps, *vectors)]
    h, saved = blocks.forward(u, scale, shift)
    backward = blocks.backward(saved, scale, shift, p_h)
    h_dot, dotted = blocks.tangent(saved, scale, shift, u_dot, scale_dot, shift_dot)
    second = blocks.second(saved, dotted, scale, shift, scale_dot, p_h, q_h)
    assert all(torch.equal(t, was) for t, was in zip((*maps, *vectors), given, strict=True)), "an argument was written to"
    found = [h, *backward, h_dot, *second]
    assert all(t.is_contiguous(memory_format=blocks.memory_format) for t in found if t.ndim == 4)
    assert all(t.dtype == u.dtype for t in found if t.ndim == 4)
    return found


def errors_of(name, dtype):
    maps, vectors = inputs_of(name)
    maps = [m.to(dtype).contiguous(memory_format=torch.channels_last) for m in maps]
    of_vectors = torch.float64 if dtype == torch.float64 else torch.float32
    vectors = [v.to(of_vectors) for v in vectors]
    exact = [m.double() for m in maps], [v.double() for v in vectors]
    found, expected = results(TritonBlocks(), maps, vectors), results(EagerBlocks(), *exact)
    # Against the largest result as well, since sums of a dead or flat map are zero up to rounding.
    scale = max(float(e.norm()) for e in expected)
    return [float((f.double() - e).norm() / max(float(e.norm()), 1e-3 * scale)) for f, e in zip(found, expected, strict=True)]


def network_errors(blocks, dtype):
    """A whole step with the kernels in it, two blocks and an odd size, against automatic differentiation in float64."""
    make = generator(0, "network")
    network = build_student(StudentSpec(depth=2, width=4), (2, 7, 6), 3)
    network.module.double()
    theta = network.init(make).double()
    x, y = (torch.randn(2, *shape, generator=make, dtype=torch.float64) for shape in ((2, 7, 6), (3,)))
    direction = torch.randn(len(theta), generator=make, dtype=torch.float64)
    theirs = Core(network).pull_back(theta, x, y, direction)
    ours = ExplicitConvNet(network, blocks).pull_back(*(t.to(dtype) for t in (theta, x, y, direction)))
    pairs = [(getattr(ours, part), getattr(theirs, part)) for part in ("slope", "theta", "x", "y")]
    return [float((found.double() - expected).norm() / expected.norm()) for found, expected in pairs]


def exact_errors():
    """Of the adjoint of a short inner run on the kernels: images of an odd size, momentum, and a view that differs from step to step."""
    return adjoint_errors(lambda network: ExplicitConvNet(network, TritonBlocks()), 2, (5, 6), count=3, batch=2, width=4)


def found():
    """The name of the blocks that there are for this device, with the kernels as they are and with a constant of theirs changed."""
    right = triton_blocks(torch.device("cpu"))
    triton_blocks.cache_clear()
    triton_kernels.EPS = 0.1
    return [blocks and blocks.name for blocks in (right, triton_blocks(torch.device("cpu")))]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        triton_kernels.EPS = float(sys.argv[1])
        print(json.dumps(errors_of("even", torch.float64)))
    else:
        out = {f"{name} {label}": errors_of(name, dtype) for name in CASES for label, dtype in DTYPES.items()}
        out["network"] = network_errors(TritonBlocks(), torch.float64)
        out["network in bfloat16"] = network_errors(HalfBlocks(TritonBlocks()), torch.float32)
        out["adjoint"] = exact_errors()
        out["found"] = found()
        print(json.dumps(out))
