"""How much of an inner run to keep: measured on one step, planned from the memory that is free, refused where it cannot fit."""

import contextlib
import errno
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
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")  # torch on a CPU; CUDA; its libraries
MEMINFO = Path("/proc/meminfo")
# Where a container's limit and use stand: version 2, and version 1.
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


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
    """Bytes: of one flat vector; of an inner run of one step up to its gradients, and of what one kept step adds, each as a constant and
    so much for each image of the batch.
    """

    theta: int
    step_fixed: int
    step_image: int
    kept_fixed: int
    kept_image: int

    def step(self, images: int) -> int:
        return self.step_fixed + images * self.step_image

    def kept(self, images: int) -> int:
        return self.kept_fixed + images * self.kept_image


def measure(inner: Inner, start: Tensor) -> Need:
    """Run one step of `inner` and its pull-back on two small parts of its batch, and count.

    From these follows any batch, also one too large to be tried: maps grow with the images, parameters do not.
    """
    small = max(1, len(inner.batches[0]) // 8)
    (step, kept), (more_step, more_kept) = (_one_step(inner, start, size) for size in (small, 2 * small))
    step_image, kept_image = -((step - more_step) // small), -((kept - more_kept) // small)  # rounded up
    return Need(start.nbytes, step - small * step_image, step_image, kept - small * kept_image, kept_image)


def _one_step(inner: Inner, start: Tensor, size: int) -> tuple[int, int]:
    """Bytes that a step and its pull-back take at most, and that its passes keep, on `size` images."""
    rows = torch.arange(size, device=start.device) % len(inner.images)
    one = Inner(inner.core, inner.images, inner.targets, inner.rate, [rows], inner.momentum, inner.augment)

    def there_and_back() -> None:
        run = run_inner(one, start)
        pull_back(run, run.end)

    there_and_back()  # libraries set themselves up on first use
    return peak_bytes(there_and_back, start.device), _kept_bytes(one, start)


def _kept_bytes(one: Inner, start: Tensor) -> int:
    x, y = one.batch(0)
    if start.device.type == "cuda":
        before = torch.cuda.memory_allocated(start.device)
        kept = one.core.gradient(start, x, y, keep=True).kept
        size = torch.cuda.memory_allocated(start.device) - before
    else:
        live = LiveBytes()
        with live:
            kept = one.core.gradient(start, x, y, keep=True).kept
            size = live.now
    del kept
    return size


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
        free = 1024 * _numbers(MEMINFO)["MemAvailable"]
    except (OSError, KeyError):  # no Linux: half of what there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for folder, limit, used in CGROUPS:
        try:
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            files = _numbers(folder / "memory.stat")
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
        cached = files.get("active_file", 0) + files.get("inactive_file", 0)  # counted as used, and given up when it is needed
        free = min(free, most - now + cached)
    return max(free, 0)


def _numbers(path: Path) -> dict[str, int]:
    """Lines like "MemAvailable:   123 kB" or "active_file 123"."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def plan_memory(need: Need, inner: Inner, free: int, device: torch.device, host: int, least: bool = False) -> Memory:
    """The fastest way to keep an inner run within SHARE of `free` bytes. Raises `DdcoreError` out_of_memory where there is none.

    In order: every theta on the device and as many steps as fit with their passes; every theta, in host memory (of which `host` bytes
    are free) if the device is CUDA; a sparse few. least: only the last, after an attempt for which more was too much.
    """
    steps, images = len(inner.batches), len(inner.batches[0])
    room = int(SHARE * free) - need.step(images)
    gradients = steps * need.theta if inner.rate.ndim else 0  # layers' rates need each step's gradient
    every = steps * need.theta
    if room >= every + gradients and not least:
        return Memory(min(steps, (room - every - gradients) // max(1, need.kept(images))))
    if room >= gradients and device.type == "cuda" and int(SHARE * host) >= every and not least:
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
    detail = f"{_least_words(need, inner)}; {gib(free)} are free, of which {SHARE:.0%} may be used"
    return detail, _fitting(need, inner, int(SHARE * free))


def exceeded(need: Need, inner: Inner, free: int, memory: Memory, error: Exception) -> DdcoreError:
    """For a run that was planned to fit and did not: the figures, and what needs no more than half of what was free."""
    steps = len(inner.batches)
    detail = f"{said_of(error)}; {_least_words(need, inner)}, {gib(free)} were free, and the plan was: {memory.words(steps)}"
    room, others = (
        int(SHARE * free / 2),
        "by these figures it fits: others on the machine may have taken it, or give smaller batches",
    )
    fits = need.step(len(inner.batches[0])) + sparse_bytes(need, inner, steps) <= room
    return DdcoreError("out_of_memory", detail, others if fits else _fitting(need, inner, room))


def _least_words(need: Need, inner: Inner) -> str:
    steps, images = len(inner.batches), len(inner.batches[0])
    least = need.step(images) + sparse_bytes(need, inner, steps)
    return f"{steps} inner steps on batches of {images} need at least {gib(least)} beside what is loaded"


def _fitting(need: Need, inner: Inner, room: int) -> str:
    """The largest number of steps, or of images, that needs no more than `room` bytes."""
    steps, images = len(inner.batches), len(inner.batches[0])
    fits = [n for n in range(1, steps) if need.step(images) + sparse_bytes(need, inner, n) <= room]
    most = (room - sparse_bytes(need, inner, steps) - need.step_fixed) // max(1, need.step_image)
    hints = []
    if fits:
        hints.append(f"method.inner_steps of {fits[-1]} or less at this batch size")
    if 1 <= most < images:
        hints.append(f"method.batch_size of {most} or less at this number of steps")
    return " or ".join(hints) or "a smaller student, or a machine with more memory"


def ran_out(error: BaseException) -> bool:
    """Whether it says that memory ran out: the device's or the machine's, whoever asked for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def said_of(error: BaseException) -> str:
    """The first line of what it says, without its full stop."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def all_bytes(device: torch.device) -> int:
    """Memory that there is: the device's, or the machine's, or what a container may take of it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder, limit, _ in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
            most = min(most, int((folder / limit).read_text()))
    return most


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
