"""Prints, as JSON, the size of each Triton kernel's machine code for an H100 or H200 and its stack; run by `test_triton.py`."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ddcore.matching.blocks import triton_kernels

SMALL = ("scale", "shift", "scale_dot", "shift_dot", "stats", "dotted", "partial")  # in the precision of sums, the rest are maps
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compiled(kernel, dtype, size, channels):
    sums = "fp64" if dtype == "fp64" else "fp32"
    windows, wide = triton_kernels.tile_of(64, channels, ((size + 1) // 2) ** 2)
    constants = {"H": size, "W": size, "C": channels, "T": windows, "K": wide, "EPSILON": 1e-5}
    constants["ACC"] = tl.float64 if sums == "fp64" else tl.float32
    signature = {name: "*" + (sums if name in SMALL else dtype) for name in kernel.arg_names} | {"B": "i32"}
    signature |= {name: "constexpr" for name in constants if name in kernel.arg_names}
    source = ASTSource(kernel, signature, {name: value for name, value in constants.items() if name in kernel.arg_names})
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return len(binary), int(re.search(r"STACK:(\d+)", usage)[1])


if __name__ == "__main__":
    kernels = (triton_kernels._forward, triton_kernels._backward, triton_kernels._tangent, triton_kernels._second)
    worlds = (("fp32", 32, 128), ("bf16", 16, 128), ("fp64", 7, 9))
    print(json.dumps({f"{k.fn.__name__} {world}": compiled(k, *world) for k in kernels for world in worlds}))
