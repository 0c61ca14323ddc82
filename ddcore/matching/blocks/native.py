"""The block in C++ for CPUs, channels last; compiled on first use by the machine's own compiler and called through ctypes."""

import ctypes
import functools
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddcore.matching.blocks.compiling import NotCompiled, library_of
from ddcore.matching.blocks.convolution import TorchConvolutions
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.blocks.interface import EPS, Blocks, Saved
from ddcore.threads import threads_worth

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.cpp")
LAST = torch.channels_last

# Up to so many multiply-adds, and channels on either side, our own convolutions are used. Against PyTorch's 2.14 on one core of a Zen 5,
# float32: at 20 x 8 x 8 images forward takes 0.29 of its time from 3 to 8 channels, backward 0.29, and after pooling 0.26 and 0.21 from
# 8 to 8; at 2 million at worst 0.7 and 0.6. The first sizes that are slower have 2.5 million (forward) and 5 million (backward).
SMALL_WORK, SMALL_CHANNELS = 2_000_000, 64

Function = Callable[[bytes], int]


class Functions(NamedTuple):
    """What the library offers for one dtype; each takes a struct Call of native.cpp."""

    forward: Function
    backward: Function
    tangent: Function
    second: Function
    image_gradient: Function
    convolve: Function
    convolve_back: Function


# struct Call, with so many pointers: threads, images, height, width, channels, others, eps, and the pointers.
call3, call5, call8, call9, call12 = (struct.Struct(f"=6qd{pointers}Q").pack for pointers in (3, 5, 8, 9, 12))


@functools.cache
def native_blocks() -> "NativeBlocks | None":
    """The blocks, checked against the eager ones; None, with a line in the log, where they cannot be had."""
    try:
        blocks = NativeBlocks(library_of(SOURCE), _openmp())
        _check(blocks)
    except NotCompiled as error:
        log.warning("the CPU's compiled blocks are not used, PyTorch's own operations are (slower, same results): %s", error)
        return None
    return blocks


class NativeBlocks(TorchConvolutions):
    """See `ddcore.matching.blocks.interface`; float32 and float64. Results do not depend on the number of threads."""

    name = "native"
    memory_format = LAST

    def __init__(self, library: ctypes.CDLL, parallel: int) -> None:
        """parallel: address of GOMP_parallel, or 0 for one thread."""
        self._library = library
        library.potstill_runtime.argtypes, library.potstill_runtime.restype = [ctypes.c_void_p], None
        library.potstill_runtime(parallel)
        self._functions = {
            dtype: Functions(*(_function(library, f"potstill_{name}_{word}") for name in Functions._fields))
            for dtype, word in ((torch.float32, "float"), (torch.float64, "double"))
        }

    def forward(self, u: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Saved]:
        u = u.contiguous(memory_format=LAST)
        b, c, h, w = u.shape
        _same(u, (c,), scale, shift)
        out = _empty(u, b, c, h // 2, w // 2)
        stats = torch.empty(2, b, c, dtype=u.dtype)
        call = call5(
            torch.get_num_threads(), b, h, w, c, 0, EPS,
            u.data_ptr(), scale.data_ptr(), shift.data_ptr(), out.data_ptr(), stats.data_ptr(),
        )  # fmt: skip
        _done(self._of(u).forward(call))
        return out, (u, stats)

    def backward(self, saved: Saved, scale: Tensor, shift: Tensor, p_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, stats = saved
        b, c, h, w = u.shape
        p_h = p_h.contiguous(memory_format=LAST)
        _same(u, (c,), scale, shift)
        _same(u, (b, c, h // 2, w // 2), p_h)
        p_u, d_scale, d_shift = torch.empty_like(u), torch.empty_like(scale), torch.empty_like(shift)
        call = call8(
            torch.get_num_threads(), b, h, w, c, 0, EPS,
            u.data_ptr(), stats.data_ptr(), scale.data_ptr(), shift.data_ptr(), p_h.data_ptr(), p_u.data_ptr(),
            d_scale.data_ptr(), d_shift.data_ptr(),
        )  # fmt: skip
        _done(self._of(u).backward(call))
        return p_u, d_scale, d_shift

    def tangent(
        self, saved: Saved, scale: Tensor, shift: Tensor, u_dot: Tensor, scale_dot: Tensor, shift_dot: Tensor
    ) -> tuple[Tensor, Saved]:
        u, stats = saved
        b, c, h, w = u.shape
        u_dot = u_dot.contiguous(memory_format=LAST)
        _same(u, (c,), scale, shift, scale_dot, shift_dot)
        _same(u, u.shape, u_dot)
        h_dot = _empty(u, b, c, h // 2, w // 2)
        stats_dot = torch.empty_like(stats)
        call = call9(
            torch.get_num_threads(), b, h, w, c, 0, EPS,
            u.data_ptr(), stats.data_ptr(), scale.data_ptr(), shift.data_ptr(), u_dot.data_ptr(), scale_dot.data_ptr(),
            shift_dot.data_ptr(), h_dot.data_ptr(), stats_dot.data_ptr(),
        )  # fmt: skip
        _done(self._of(u).tangent(call))
        return h_dot, (u_dot, stats_dot)

    def second(
        self, saved: Saved, dotted: Saved, scale: Tensor, shift: Tensor, scale_dot: Tensor, p_h: Tensor, q_h: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        (u, stats), (u_dot, stats_dot) = saved, dotted
        b, c, h, w = u.shape
        p_h, q_h = p_h.contiguous(memory_format=LAST), q_h.contiguous(memory_format=LAST)
        _same(u, (c,), scale, shift, scale_dot)
        _same(u, (b, c, h // 2, w // 2), p_h, q_h)
        q_u, d_scale, d_shift = torch.empty_like(u), torch.empty_like(scale), torch.empty_like(shift)
        call = call12(
            torch.get_num_threads(), b, h, w, c, 0, EPS,
            u.data_ptr(), stats.data_ptr(), u_dot.data_ptr(), stats_dot.data_ptr(), scale.data_ptr(), shift.data_ptr(),
            scale_dot.data_ptr(), p_h.data_ptr(), q_h.data_ptr(), q_u.data_ptr(), d_scale.data_ptr(),
            d_shift.data_ptr(),
        )  # fmt: skip
        _done(self._of(u).second(call))
        return q_u, d_scale, d_shift

    def image_gradient(self, q_u: Tensor, p_u: Tensor, weight: Tensor, weight_dot: Tensor) -> Tensor:
        """weight^T q_u + weight_dot^T p_u: [b, c_in, h, w] contiguous; by a kernel of its own for the 1 to 3 channels of an image."""
        channels = weight.shape[1]
        if channels > 3:
            return super().image_gradient(q_u, p_u, weight, weight_dot)
        q_u, p_u = q_u.contiguous(memory_format=LAST), p_u.contiguous(memory_format=LAST)
        weight, weight_dot = weight.contiguous(), weight_dot.contiguous()
        b, c, h, w = q_u.shape
        _same(q_u, q_u.shape, p_u)
        _same(q_u, (c, channels, 3, 3), weight, weight_dot)
        d_x = torch.empty(b, channels, h, w, dtype=q_u.dtype)
        call = call5(
            torch.get_num_threads(), b, h, w, c, channels, EPS,
            q_u.data_ptr(), p_u.data_ptr(), weight.data_ptr(), weight_dot.data_ptr(), d_x.data_ptr(),
        )  # fmt: skip
        _done(self._of(q_u).image_gradient(call))
        return d_x

    def convolve(self, h: Tensor, weight: Tensor) -> Tensor:
        """weight * h; by a kernel of its own where PyTorch's takes longer to call than to run."""
        b, c, height, width = h.shape
        others = weight.shape[0]
        if not _small(b * height * width, c, others):
            return super().convolve(h, weight)
        h, weight = h.contiguous(memory_format=LAST), weight.contiguous(memory_format=LAST)
        _same(h, (others, c, 3, 3), weight)
        u = _empty(h, b, others, height, width)
        _done(self._of(h).convolve(call3(1, b, height, width, c, others, EPS, h.data_ptr(), weight.data_ptr(), u.data_ptr())))
        return u

    def convolve_back(
        self, p_u: Tensor, h: Tensor, weight: Tensor, for_input: bool = True, for_weight: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Back through `convolve`; by a kernel of its own where PyTorch's takes longer to call than to run."""
        b, c, height, width = h.shape
        others = weight.shape[0]
        if not _small(b * height * width, c, others):
            return super().convolve_back(p_u, h, weight, for_input, for_weight)
        p_u, h, weight = p_u.contiguous(memory_format=LAST), h.contiguous(memory_format=LAST), weight.contiguous(memory_format=LAST)
        _same(h, (b, others, height, width), p_u)
        _same(h, (others, c, 3, 3), weight)
        d_h = torch.empty_like(h) if for_input else h
        d_weight = torch.empty_like(weight) if for_weight else weight
        call = call5(
            1, b, height, width, c, others, EPS,
            p_u.data_ptr(), h.data_ptr(), weight.data_ptr(), d_h.data_ptr() if for_input else 0, d_weight.data_ptr() if for_weight else 0,
        )  # fmt: skip
        _done(self._of(h).convolve_back(call))
        return d_h, d_weight

    def _of(self, u: Tensor) -> Functions:
        functions = self._functions.get(u.dtype)
        if functions is None or not u.is_cpu:
            raise TypeError(f"the native blocks take float32 and float64 on the CPU, not {u.dtype} on {u.device}")
        return functions


def _function(library: ctypes.CDLL, name: str) -> Function:
    function = getattr(library, name)
    function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int
    return function  # type: ignore[no-any-return]


def _empty(u: Tensor, b: int, c: int, h: int, w: int) -> Tensor:
    """Maps like `u`, channels last; torch.empty takes half as long again to make them."""
    return u.new_empty_strided((b, c, h, w), (h * w * c, 1, w * c, c))


def _small(pixels: int, c_in: int, c_out: int) -> bool:
    return 0 < 9 * pixels * c_in * c_out <= SMALL_WORK and max(c_in, c_out) <= SMALL_CHANNELS


def _same(u: Tensor, shape: tuple[int, ...], *others: Tensor) -> None:
    """What C++ would read past the end of, or wrongly."""
    dtype = u.dtype
    for other in others:
        if other.shape != shape or other.dtype is not dtype or not other.is_cpu:
            raise ValueError(
                f"a block of {dtype} maps {tuple(u.shape)} wants {tuple(shape)}, not {other.dtype} {tuple(other.shape)} on {other.device}"
            )
        if len(shape) == 1 and not other.is_contiguous():
            raise ValueError("a block's scales and shifts must lie densely")


def _done(status: int) -> None:
    if status:
        raise MemoryError("what a block needs besides its maps does not fit in memory")


def _openmp() -> int:
    """The address of GOMP_parallel in the OpenMP runtime that PyTorch runs on: a second runtime would fight that one for the cores.

    Raises NotCompiled where it cannot be told which that is.
    """
    home = Path(torch.__file__).resolve().parent  # as the list of what is mapped has it, whatever links led there
    mapped = _mapped()
    found = [path for path in mapped if path.parent in (home / "lib", home.with_name("torch.libs"))] or mapped
    if len(found) != 1:
        raise NotCompiled(f"of the OpenMP runtimes loaded, {len(found)} may be PyTorch's")
    try:
        return ctypes.cast(ctypes.CDLL(str(found[0])).GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError) as error:
        raise NotCompiled(f"PyTorch's OpenMP runtime {found[0]} is of no use: {error}") from error


def _mapped() -> list[Path]:
    """The OpenMP runtimes that this process has loaded."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    return sorted({Path(line.split(maxsplit=5)[5]) for line in lines if "libgomp" in line})


def _check(blocks: Blocks) -> None:
    """One small block, odd in every size, against the eager blocks; raises NotCompiled if they differ."""
    make = torch.Generator().manual_seed(0)
    b, c, h, w = 2, 21, 5, 7

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=make).contiguous()

    maps, pooled, rows = [draw(b, c, h, w) for _ in range(2)], [draw(b, c, h // 2, w // 2) for _ in range(2)], [draw(c) for _ in range(4)]
    images, weights = draw(b, 3, h, w), [draw(c, 3, 3, 3) for _ in range(2)]
    with threads_worth(0):  # a thread started here would be missing in a process that forks afterwards
        results = [[*_run(one, maps, pooled, rows), *_convolve(one, maps, images, weights)] for one in (blocks, EagerBlocks())]
    for found, right in zip(*results, strict=True):
        if not torch.allclose(found, right, rtol=1e-9, atol=1e-9):
            raise NotCompiled("what was compiled does not compute the block")


def _convolve(blocks: Blocks, maps: list[Tensor], images: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Everything that the convolutions' functions return, on one layer."""
    back = blocks.convolve_back(maps[0], images, weights[0])
    return [blocks.convolve(images, weights[0]), *back, blocks.image_gradient(*maps, *weights)]


def _run(blocks: Blocks, maps: list[Tensor], pooled: list[Tensor], rows: list[Tensor]) -> list[Tensor]:
    """Everything that the four functions return, on one block."""
    (u, u_dot), (p_h, q_h), (scale, shift, scale_dot, shift_dot) = maps, pooled, rows
    h, saved = blocks.forward(u, scale, shift)
    h_dot, dotted = blocks.tangent(saved, scale, shift, u_dot, scale_dot, shift_dot)
    return [
        h, h_dot, *blocks.backward(saved, scale, shift, p_h), *blocks.second(saved, dotted, scale, shift, scale_dot, p_h, q_h)
    ]  # fmt: skip
