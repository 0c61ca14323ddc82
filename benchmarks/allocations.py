"""Exact peak memory of tensors: the bytes that torch's allocator has handed out at once, not what the process appears to hold."""

import gc
import itertools
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.pairs import wait_for

MARK = "[memory]"  # what the profiler calls an allocation or a release


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most that `run` has allocated at any one time, above what was allocated before it.

    On the CPU every allocation of torch's CPU allocator is counted (tensors, results, workspaces that operators take from it; native
    code that is handed tensors, too), as the profiler records it; scratch space that oneDNN or BLAS takes from the system by itself is
    not. On CUDA, the caching allocator's own count. Releases of memory from before the run are not counted.
    """
    gc.collect()
    if device.type == "cuda":
        run()  # on the first run libraries set themselves up, in workspaces of their own
        wait_for(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        wait_for(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    recorded = profiled.profiler
    if recorded is None or recorded.kineto_results is None:
        raise RuntimeError("torch's profiler recorded nothing")
    events = sorted((one for one in recorded.kineto_results.events() if one.name() == MARK), key=lambda one: int(one.start_ns()))
    return max(itertools.accumulate((int(one.nbytes()) for one in events), initial=0))
