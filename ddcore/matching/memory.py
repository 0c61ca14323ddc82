"""How much of an inner run to keep: measured on one step, planned from the memory that is free, refused where it cannot fit."""

import math
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddcore.errors import DdcoreError
from ddcore.matching.adjoint import Inner, Memory, pull_back, run_inner

SHARE = 0.8  # of the free memory that a plan may use: others live here too, and kernels take workspace that is not counted
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside and still alive.

    Not seen: scratch memory inside one operation, and what code from torch.compile allocates (on CUDA, where such code may be in use,
    the allocator itself is asked).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Lets functions from torch.compile run inside."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self.now += size
        self.peak = max(self.peak, self.now)
        self._seen[key] = weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        del self._seen[key]
        self.now -= size


@dataclass(frozen=True)
class Need:
    """Bytes: of an inner run of one step from its start to its gradients; of one flat vector; of what one kept step adds."""

    step: int
    theta: int
    kept: int


def measure(inner: Inner, start: Tensor) -> Need:
    """Run the first step of `inner` and its pull-back, and count."""
    one = Inner(inner.core, inner.images, inner.targets, inner.rate, inner.batches[:1], inner.momentum, inner.augment)

    def there_and_back() -> None:
        run = run_inner(one, start)
        pull_back(run, run.end)

    there_and_back()  # libraries set themselves up on first use
    kept = LiveBytes()
    with kept:
        held = one.core.gradient(start, *one.batch(0), keep=True).kept
        size = kept.now
        del held
    return Need(peak_bytes(there_and_back, start.device), start.nbytes, size)


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """The most bytes of tensors alive during `work` beyond those before it: the allocator's own figure on CUDA."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    live = LiveBytes()
    with live:
        work()
    return live.peak


def free_bytes(device: torch.device) -> int:
    """Memory that a run may still take on `device`: what the machine has free, and no more than a container's limit leaves."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    try:
        (line,) = (line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # no Linux: half of what there is
    try:
        return min(free, int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no such limit
        return free


def plan_memory(need: Need, inner: Inner, free: int, device: torch.device) -> Memory:
    """The fastest way to keep an inner run within SHARE of `free` bytes. Raises `DdcoreError` out_of_memory where there is none.

    In order: every theta on the device and as many steps as fit with their passes; every theta, in host memory if the device is CUDA;
    a sparse few.
    """
    steps, room = len(inner.batches), int(SHARE * free) - need.step
    every = steps * need.theta * (2 if inner.rate.ndim else 1)  # layers' rates need each step's gradient
    if room >= every:
        return Memory(min(steps, (room - every) // max(1, need.kept)))
    if room >= 0 and device.type == "cuda" and not inner.rate.ndim:
        return Memory(0, "host")
    if room >= sparse_bytes(need, inner, steps):
        return Memory(0, "sparse")
    raise DdcoreError("out_of_memory", *_refusal(need, inner, free))


def sparse_bytes(need: Need, inner: Inner, steps: int) -> int:
    """What the thetas of `steps` steps take when only a few are kept: those, one stretch between two of them, and velocities."""
    few = math.ceil(math.sqrt(steps))
    return need.theta * (few * (2 if inner.momentum else 1) + few + (steps if inner.rate.ndim else 0))


def _refusal(need: Need, inner: Inner, free: int) -> tuple[str, str]:
    """The figures, and the largest number of steps or of images that would fit."""
    steps, batch, room = len(inner.batches), len(inner.batches[0]), int(SHARE * free)
    least = need.step + sparse_bytes(need, inner, steps)
    detail = (
        f"{steps} inner steps on batches of {batch} need at least {_gib(least)} beside what is loaded;"
        f" {_gib(free)} are free, of which {SHARE:.0%} may be used"
    )
    fits = [n for n in range(1, steps) if need.step + sparse_bytes(need, inner, n) <= room]
    images = int(batch * (room - sparse_bytes(need, inner, steps)) / need.step)
    hints = []
    if fits:
        hints.append(f"method.inner_steps of {fits[-1]} or less at this batch size")
    if images >= 1:
        hints.append(f"method.batch_size of about {images} or less at this number of steps")
    return detail, " or ".join(hints) or "a smaller student, or a machine with more memory"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
