"""The inner run and its exact gradient against the plain full unroll: time, memory, exactness. `python -m benchmarks.unroll --help`

For each N of --steps: both sides in turn, in one process, both warm, with the same threads, data and allocator setting; the ratio is
the median of the ratios of neighbours. Memory is measured in runs of its own: the peak of bytes allocated above those before the run,
with nothing cached, and as timed. Exactness is measured on small networks in float64 (`benchmarks.exactness`).

The last line is one JSON object. It describes the last N; `rows` has all of them.

    n, batch, device, dtype                    what was run
    time_ratio, time_ratio_quartiles, n_pairs  ours over the full unroll's
    ms, baseline_ms                            medians
    cached                                     steps whose passes were kept while timing
    peak_memory_ratio                          nothing cached; peak_bytes, baseline_peak_bytes
    peak_memory_ratio_as_timed                 with the cache of the timing
    bytes_per_extra_step_over_parameter_bytes  growth of our peak from N/2 steps to N, nothing cached, for each step, over the size of the
                                               parameters
    max_relative_error_fp64                    any gradient, largest error over largest number
    flops_share, roofline_share                of the peaks measured here, in the dtype that our convolutions multiply in: arithmetic of
                                               convolutions and products over time; the least time that operations and bytes, counted
                                               by `benchmarks.roofline`, allow over time. Both of the least work there is, a pull-back
                                               that repeats nothing, whatever is kept while timing; so is baseline_flops_share
    roofline_share_as_run                      the same with what the pull-back repeats, where nothing is cached
    cosine                                     with tf32 and bf16: the smaller one of our gradients in images and in targets with the
                                               full unroll's in float32
"""

import argparse
import math
import time
from typing import Any

import torch

from benchmarks.allocations import peak_bytes
from benchmarks.exactness import gradients, max_relative_error
from benchmarks.full_unroll import Problem, full_unroll
from benchmarks.machine import DTYPES, Peaks, choose_dtype, facts, measure_peaks, prepare
from benchmarks.output import between, facts_line, finish, table
from benchmarks.pairs import add_options, clocked, interleave
from benchmarks.roofline import least_seconds, passes_flops
from benchmarks.settings import CIFAR, CORES, Setting, flat_convnet, make_core, setting, threads_of
from ddcore.matching.adjoint import Memory
from ddcore.matching.cores import Core
from ddcore.matching.graphs import Replayed
from ddcore.matching.precision import true_float32
from ddcore.networks.flat import FlatNetwork
from ddcore.presets import PRESETS
from ddcore.run import choose_device

LONG = 5.0  # seconds; when the runs that measure memory take longer, they are warm-up enough


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    device = choose_device(options.device)
    chosen = setting(options, device, choose_dtype(options.dtype, device))
    prepare(options.threads or threads_of(chosen.sizes))
    dtype = DTYPES[chosen.dtype]
    network = flat_convnet(chosen.sizes, device, dtype.tensors)
    core = make_core(chosen.core, network, device, chosen.dtype == "bf16")
    peaks = measure_peaks(device, dtype.maps)
    about = facts(device) | {"core": core.name, "parameters": network.num_parameters}
    about |= {"peak_gflops": round(peaks.flops / 1e9, 1), "peak_gbytes_per_second": round(peaks.bandwidth / 1e9, 1)}
    print(facts_line(about), flush=True)
    error = max_relative_error(lambda small: make_core(chosen.core, small, device), device)
    rows = [_row(chosen, network, core, n, peaks, options) for n in chosen.steps]
    print(_table(rows))
    print(f"float64: the largest relative error of any gradient is {error:.1e}")
    finish(rows[-1] | {"max_relative_error_fp64": error} | about | {"rows": rows})


def _row(chosen: Setting, network: FlatNetwork, core: Core, n: int, peaks: Peaks, options: argparse.Namespace) -> dict[str, Any]:
    problem, kept = chosen.problem(network, n), Memory(n) if options.cached else Memory()
    began = time.perf_counter()
    memory = _memory(chosen, network, core, problem, kept)  # also the first run of both sides
    warm_up = 0 if time.perf_counter() - began > LONG else 2
    iteration = Replayed(lambda: gradients(core, problem, kept), chosen.device)  # on CUDA a graph, as in the engine
    if chosen.device.type == "cuda":
        iteration()  # captures the graph, which is no part of any iteration after the first
    theirs, ours = (clocked(run, chosen.device) for run in (lambda: full_unroll(network.module, problem), iteration))
    pairs = interleave(theirs, ours, options.repeats, options.seconds, warm_up)
    row: dict[str, Any] = {"n": n, "batch": chosen.sizes.batch, "device": chosen.device.type, "dtype": chosen.dtype}
    row |= pairs.report() | {"cached": kept.cached, "momentum": chosen.momentum}
    row |= memory
    if chosen.dtype in ("tf32", "bf16"):
        row["cosine"] = _cosine(network, core, problem, kept)
    return row | _shares(chosen, n, peaks, row["ms"] / 1e3, row["baseline_ms"] / 1e3, options.cached)


def _shares(chosen: Setting, n: int, peaks: Peaks, ours: float, baseline: float, kept: bool) -> dict[str, Any]:
    """Of the peaks, from the seconds of both sides; kept: whether the pull-back found all passes kept."""
    dtype, flops = DTYPES[chosen.dtype], n * passes_flops(chosen.sizes)
    least, as_run = (least_seconds(chosen.sizes, n, peaks, dtype.maps.itemsize, dtype.tensors.itemsize, keep) for keep in (True, kept))
    return {
        "flops": flops,
        "flops_share": _rounded(flops / ours / peaks.flops),
        "roofline_share": _rounded(least / ours),
        "roofline_share_as_run": _rounded(as_run / ours),
        "baseline_flops_share": _rounded(flops / baseline / peaks.flops),
    }


def _cosine(network: FlatNetwork, core: Core, problem: Problem, kept: Memory) -> float:
    """The smaller cosine of our gradients in images and targets with the full unroll's in float32."""
    with true_float32():
        wanted = full_unroll(network.module, problem)
    found = gradients(core, problem, kept)
    pairs = ((found[0], wanted.images), (found[1], wanted.targets))
    return min(float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0)) for one, other in pairs)


def _memory(chosen: Setting, network: FlatNetwork, core: Core, problem: Problem, kept: Memory) -> dict[str, Any]:
    n, device = len(problem.batches), chosen.device
    other = n // 2 or 2
    shorter = chosen.problem(network, other)
    baseline = peak_bytes(lambda: full_unroll(network.module, problem), device)
    ours = peak_bytes(lambda: gradients(core, problem, Memory()), device)
    less = peak_bytes(lambda: gradients(core, shorter, Memory()), device)
    as_timed = peak_bytes(lambda: gradients(core, problem, kept), device) if kept.cached else ours
    parameter_bytes = network.num_parameters * problem.start.element_size()
    return {
        "peak_memory_ratio": _rounded(ours / baseline),
        "peak_bytes": ours,
        "baseline_peak_bytes": baseline,
        "peak_memory_ratio_as_timed": _rounded(as_timed / baseline),
        "bytes_per_extra_step_over_parameter_bytes": _rounded((ours - less) / (n - other) / parameter_bytes),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    timed = ("N", "batch", "device", "dtype", "unroll ms", "ours ms", "ratio [quartiles]", "n")
    shares = ("flops, least work", "roofline, least work", "as run")
    return table((*timed, "peak memory", "as timed", "a step more", *shares), [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        *(str(row[name]) for name in ("n", "batch", "device", "dtype")),
        *(f"{row[name]:,.1f}" for name in ("baseline_ms", "ms")),
        between(row["time_ratio"], row["time_ratio_quartiles"]),
        str(row["n_pairs"]),
        *(f"{row[name]:.3f}" for name in ("peak_memory_ratio", "peak_memory_ratio_as_timed", "bytes_per_extra_step_over_parameter_bytes")),
        *(f"{row[name]:.0%}" for name in ("flops_share", "roofline_share", "roofline_share_as_run")),
    )


def _rounded(value: float) -> float:
    """Four digits that count."""
    return round(value, 3 - math.floor(math.log10(abs(value)))) if value else 0.0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unroll", description="The exact gradient of an inner run against the full unroll."
    )
    parser.add_argument("--preset", default=CIFAR, choices=[CIFAR, *PRESETS], help="where sizes that are not given come from")
    for name, text in (
        ("width", "channels of every block"),
        ("depth", "blocks"),
        ("size", "height and width of the images"),
        ("channels", "channels of the images"),
        ("dims", "dimensions of the targets"),
        ("batch", "images of an inner step"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="K", help=text)
    parser.add_argument("--steps", type=int, nargs="+", metavar="N", help="lengths of the inner run")
    parser.add_argument("--momentum", type=float, help="of the inner run")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", *DTYPES),
        help="auto, as in the engine: tf32 on CUDA, float32 elsewhere; tf32: float32 with products in TF32, both sides; bf16: our"
        " convolutions in bfloat16, against what auto is",
    )
    add_options(parser, "N", 45.0)
    parser.add_argument("--core", default="auto", choices=CORES)
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument("--cached", action="store_true", default=True, help="keep all steps' passes while timing (the default)")
    cache.add_argument("--nothing-cached", action="store_false", dest="cached", help="repeat them instead")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
