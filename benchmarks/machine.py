"""The machine a benchmark runs on: what it is, how fast it multiplies and copies, and the engine's own settings for both sides."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.pairs import wait_for
from ddcore.matching.precision import set_precision
from ddcore.run import keep_freed_memory, set_deterministic

WAYS = 7  # times that a peak is measured; the best counts
CPU_SIDE, CUDA_SIDE = 2048, 8192  # of the multiplied matrices
CPU_COPY, CUDA_COPY = 1 << 27, 1 << 32  # bytes, far above any cache


@dataclass(frozen=True)
class Dtype:
    """What --dtype stands for: parameters, images and results on both sides; maps between our convolutions, and what these multiply in."""

    tensors: torch.dtype
    maps: torch.dtype


DTYPES = {
    "float32": Dtype(torch.float32, torch.float32),
    "tf32": Dtype(torch.float32, torch.float32),
    "bf16": Dtype(torch.float32, torch.bfloat16),
    "float64": Dtype(torch.float64, torch.float64),
}


def prepare(threads: int) -> None:
    """The settings that the engine runs with, for both sides: threads, deterministic algorithms, freed memory kept."""
    keep_freed_memory()
    set_deterministic(threads)


def choose_dtype(choice: str, device: torch.device) -> str:
    """Set what float32 products are computed in, on both sides, as the engine does; returns the name in DTYPES.

    `auto` is tf32 on CUDA and float32 elsewhere; with bf16, products that stay float32 are TF32 on CUDA. Raises SystemExit for tf32
    elsewhere.
    """
    if choice == "tf32" and device.type != "cuda":
        raise SystemExit("--dtype tf32 is CUDA's; try auto or float32")
    if choice == "float64":
        return choice
    return set_precision(choice, device)  # type: ignore[arg-type]


def facts(device: torch.device) -> dict[str, Any]:
    """Processor, threads, versions: what a figure is worth nothing without."""
    found: dict[str, Any] = {"cpu": _cpu(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    found["omp_wait_policy"] = os.environ.get("OMP_WAIT_POLICY", "default")
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@dataclass(frozen=True)
class Peaks:
    """Measured here and now, in this dtype: operations a second of one large product or convolution, bytes a second copied."""

    flops: float
    bandwidth: float


def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """The best of a few products and convolutions (a CPU's libraries differ by more than two), and of a few copies (read and write)."""
    on_gpu = device.type == "cuda"
    side = CUDA_SIDE if on_gpu else CPU_SIDE
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = 2.0 * side**3 / _best(lambda: torch.mm(a, b, out=out), device)
    maps, weight = torch.randn(64, 256, 16, 16, device=device, dtype=dtype), torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
    maps, weight = (t.contiguous(memory_format=torch.channels_last) for t in (maps, weight))
    taps = 2.0 * maps.numel() * weight[0].numel()  # one product and one sum for each weight, pixel and image
    convolution = taps / _best(lambda: functional.conv2d(maps, weight, padding=1), device)
    size = CUDA_COPY if on_gpu else CPU_COPY
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    goal = torch.ones_like(source)
    copy = _best(lambda: goal.copy_(source), device)
    return Peaks(max(product, convolution), 2.0 * size / copy)


def _best(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(WAYS):
        wait_for(device)
        began = time.perf_counter()
        run()
        wait_for(device)
        times.append(time.perf_counter() - began)
    return min(times)
