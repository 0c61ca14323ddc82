"""Prints, as JSON, the size of each Triton kernel's machine code for an H100 or H200 and its stack; run by `test_triton.py`."""

import contextlib
import io
import json
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ddcore.matching.blocks import triton_kernels

SMALL = ("scale", "shift", "scale_dot", "shift_dot", "stats", "dotted", "partial")  # in the precision of sums, the rest are maps


def compiled(kernel, dtype, size, channels):
    sums = "fp64" if dtype == "fp64" else "fp32"
    windows, wide = triton_kernels.tile_of(64, channels, ((size + 1) // 2) ** 2)
    constants = {"H": size, "W": size, "C": channels, "T": windows, "K": wide, "EPSILON": 1e-5}
    constants["ACC"] = tl.float64 if sums == "fp64" else tl.float32
    signature = {name: "*" + (sums if name in SMALL else dtype) for name in kernel.arg_names} | {"B": "i32"}
    signature |= {name: "constexpr" for name in constants if name in kernel.arg_names}
    source = ASTSource(kernel, signature, {name: value for name, value in constants.items() if name in kernel.arg_names})
    with contextlib.redirect_stdout(io.StringIO()) as log:
        binary = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    return len(binary), max(map(int, re.findall(r"(\d+) bytes stack frame", log.getvalue())))


if __name__ == "__main__":
    # The assembler, which Triton brings along and cannot do without, says what it used; it is asked anew, since its log is not kept.
    triton.knobs.nvidia.dump_ptxas_log = triton.knobs.compilation.always_compile = True
    kernels = (triton_kernels._forward, triton_kernels._backward, triton_kernels._tangent, triton_kernels._second)
    worlds = (("fp32", 32, 128), ("bf16", 16, 128), ("fp64", 7, 9))
    print(json.dumps({f"{k.fn.__name__} {world}": compiled(k, *world) for k in kernels for world in worlds}))
