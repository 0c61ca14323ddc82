"""The block as Triton kernels, one for each derivative, each reading a map from memory once and its cache the second time.

One program has one image and a few channels. It goes through the map in tiles of 2x2 pooling windows, first for the sums that the
result needs and then for the result. Only u and its mean and r are kept; n and [z > 0] are computed again, which costs less than
reading them. float64 is summed in float64; float32 and bfloat16 in float32, and scales and shifts are not bfloat16. What a program
finds for g and s is written down per image and summed over images by PyTorch: no atomics, so the same bits every time.

The sums of `second` follow from J u_dot = n_dot and J being linear: with mean_n v = mean(n v), k = g_dot - r g mean_n(u_dot),

    Q_u = r (v - mean v - n mean_n v) - r g mean_n(P_z) n_dot - r g mean(P_z n_dot) n,   v = g Q_z + k P_z

so that five sums, of P_z, n P_z, P_z n_dot, Q_z and n Q_z, are all it takes.
"""

import subprocess
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from ddcore.matching.blocks.convolution import TorchConvolutions
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.blocks.interface import EPS, Saved

PROGRAMS = 1024  # on a GPU at least so many, as far as 8 channels (32 bytes of float32, a sector of memory) in each allow
TILE = 512  # windows times channels that a program has in hand; four pixels each


@triton.jit
def _windows(first: tl.tensor, T: tl.constexpr, H: tl.constexpr, W: tl.constexpr) -> tl.tensor:
    """Row and column of T windows in turn; an odd side's last window is cut off, and there are none beyond it."""
    index = first + tl.arange(0, T)
    return index // ((W + 1) // 2), index % ((W + 1) // 2)


@triton.jit
def _pixel(
    row: tl.tensor, column: tl.tensor, corner: tl.constexpr, channel: tl.tensor, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr
) -> tl.tensor:
    """Where one corner of each window lies in an image, and whether there is such a pixel and channel."""
    i, j = 2 * row + corner // 2, 2 * column + corner % 2
    return ((i * W + j) * C)[:, None] + channel[None, :], ((i < H) & (j < W))[:, None] & (channel < C)[None, :]


@triton.jit
def _cell(row: tl.tensor, column: tl.tensor, channel: tl.tensor, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr) -> tl.tensor:
    """Where a window's pooled value lies, and whether it has one."""
    at = ((row * (W // 2) + column) * C)[:, None] + channel[None, :]
    return at, ((row < H // 2) & (column < W // 2))[:, None] & (channel < C)[None, :]


@triton.jit
def _read(pointer: tl.tensor, at: tl.tensor, there: tl.tensor, ACC: tl.constexpr) -> tl.tensor:
    return tl.load(pointer + at, mask=there, other=0.0).to(ACC)


@triton.jit
def _forward(
    u: tl.tensor, scale: tl.tensor, shift: tl.tensor, h: tl.tensor, stats: tl.tensor, B: tl.tensor,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, T: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr, EPSILON: tl.constexpr,
) -> None:  # fmt: skip
    image, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * K + tl.arange(0, K)
    u += image * (H * W * C)
    h += image * ((H // 2) * (W // 2) * C)
    WINDOWS: tl.constexpr = ((H + 1) // 2) * ((W + 1) // 2)
    total, squares = tl.zeros((T, K), ACC), tl.zeros((T, K), ACC)
    for first in range(0, WINDOWS, T):
        row, column = _windows(first, T, H, W)
        for corner in tl.static_range(4):
            at, there = _pixel(row, column, corner, channel, H, W, C)
            total += _read(u, at, there, ACC)
    mean = tl.sum(total, 0) * (1.0 / (H * W))
    for first in range(0, WINDOWS, T):  # on its own: the square of the mean, taken from the mean square, would cost digits
        row, column = _windows(first, T, H, W)
        for corner in tl.static_range(4):
            at, there = _pixel(row, column, corner, channel, H, W, C)
            centred = tl.where(there, _read(u, at, there, ACC) - mean[None, :], 0.0)
            squares += centred * centred
    r = 1.0 / tl.sqrt(tl.sum(squares, 0) * (1.0 / (H * W)) + EPSILON)
    tl.store(stats + image * C + channel, mean, mask=channel < C)
    tl.store(stats + (B + image) * C + channel, r, mask=channel < C)
    g, s = _read(scale, channel, channel < C, ACC), _read(shift, channel, channel < C, ACC)
    for first in range(0, WINDOWS, T):
        row, column = _windows(first, T, H, W)
        pooled = tl.zeros((T, K), ACC)
        for corner in tl.static_range(4):
            at, there = _pixel(row, column, corner, channel, H, W, C)
            n = (_read(u, at, there, ACC) - mean[None, :]) * r[None, :]
            pooled += tl.maximum(g[None, :] * n + s[None, :], 0.0)
        at, there = _cell(row, column, channel, H, W, C)
        tl.store(h + at, pooled * 0.25, mask=there)


@triton.jit
def _backward(
    u: tl.tensor, stats: tl.tensor, scale: tl.tensor, shift: tl.tensor, p_h: tl.tensor, p_u: tl.tensor, partial: tl.tensor, B: tl.tensor,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, T: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr,
) -> None:  # fmt: skip
    image, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * K + tl.arange(0, K)
    u += image * (H * W * C)
    p_u += image * (H * W * C)
    p_h += image * ((H // 2) * (W // 2) * C)
    WINDOWS: tl.constexpr = ((H + 1) // 2) * ((W + 1) // 2)
    own, known = image * C + channel, channel < C
    mean, r = _read(stats, own, known, ACC), _read(stats, B * C + own, known, ACC)
    g, s = _read(scale, channel, known, ACC), _read(shift, channel, known, ACC)
    of_p, of_np = tl.zeros((T, K), ACC), tl.zeros((T, K), ACC)
    for first in range(0, WINDOWS, T):
        row, column = _windows(first, T, H, W)
        at, there = _cell(row, column, channel, H, W, C)
        quarter = _read(p_h, at, there, ACC) * 0.25
        for corner in tl.static_range(4):
            at, there = _pixel(row, column, corner, channel, H, W, C)
            n = (_read(u, at, there, ACC) - mean[None, :]) * r[None, :]
            p = tl.where(g[None, :] * n + s[None, :] > 0.0, quarter, 0.0)
            of_p += p
            of_np += n * p
    sum_p, sum_np = tl.sum(of_p, 0), tl.sum(of_np, 0)
    tl.store(partial + own, sum_np, mask=known)
    tl.store(partial + B * C + own, sum_p, mask=known)
    factor, mean_p, mean_np = r * g, sum_p * (1.0 / (H * W)), sum_np * (1.0 / (H * W))
    for first in range(0, WINDOWS, T):
        row, column = _windows(first, T, H, W)
        at, there = _cell(row, column, channel, H, W, C)
        quarter = _read(p_h, at, there, ACC) * 0.25
        for corner in tl.static_range(4):
            at, there = _pixel(row, column, corner, channel, H, W, C)
            n = (_read(u, at, there, ACC) - mean[None, :]) * r[None, :]
            p = tl.where(g[None, :] * n + s[None, :] > 0.0, quarter, 0.0)
            tl.store(p_u + at, factor[None, :] * (p - mean_p[None, :] - n * mean_np[None, :]), mask=there)


@triton.jit
def _tangent(
    u: tl.tensor, stats: tl.tensor, scale: tl.tensor, shift: tl.tensor,
    u_dot: tl.tensor, scale_dot: tl.tensor, shift_dot: tl.tensor, h_dot: tl.tensor, dotted: tl.tensor, B: tl.tensor,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, T: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr,
) -> None:  # fmt: skip
    image, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * K + tl.arange(0, K)
    u += image * (H * W * C)
    u_dot += image * (H * W * C)
    h_dot += image * ((H // 2) * (W // 2) * C)
    WINDOWS: tl.constexpr = ((H + 1) // 2) * ((W + 1) // 2)
    own, known = image * C + channel, channel < C
    mean, r = _read(stats, own, known, ACC), _read(stats, B * C + own, known, ACC)
    g, s = _read(scale, channel, known, ACC), _read(shift, channel, known, ACC)
    g_dot, s_dot = _read(scale_dot, channel, known, ACC), _read(shift_dot, channel, known, ACC)
    of_u, of_nu = tl.zeros((T, K), ACC), tl.zeros((T, K), ACC)
    for first in range(0, WINDOWS, T):
        row, column = _windows(first, T, H, W)
        for corner in tl.static_range(4):
            at, there = _pixel(row, column, corner, channel, H, W, C)
            moved = _read(u_dot, at, there, ACC)
            of_u += moved
            of_nu += (_read(u, at, there, ACC) - mean[None, :]) * r[None, :] * moved
    mean_u, mean_nu = tl.sum(of_u, 0) * (1.0 / (H * W)), tl.sum(of_nu, 0) * (1.0 / (H * W))
    tl.store(dotted + own, mean_u, mask=known)
    tl.store(dotted + B * C + own, mean_nu, mask=known)
    for first in range(0, WINDOWS, T):
        row, column = _windows(first, T, H, W)
        pooled = tl.zeros((T, K), ACC)
        for corner in tl.static_range(4):
            at, there = _pixel(row, column, corner, channel, H, W, C)
            n = (_read(u, at, there, ACC) - mean[None, :]) * r[None, :]
            n_dot = r[None, :] * (_read(u_dot, at, there, ACC) - mean_u[None, :] - n * mean_nu[None, :])
            z_dot = g_dot[None, :] * n + g[None, :] * n_dot + s_dot[None, :]
            pooled += tl.where(g[None, :] * n + s[None, :] > 0.0, z_dot, 0.0)
        at, there = _cell(row, column, channel, H, W, C)
        tl.store(h_dot + at, pooled * 0.25, mask=there)


@triton.jit
def _second(
    u: tl.tensor, stats: tl.tensor, u_dot: tl.tensor, dotted: tl.tensor,
    scale: tl.tensor, shift: tl.tensor, scale_dot: tl.tensor,
    p_h: tl.tensor, q_h: tl.tensor, q_u: tl.tensor, partial: tl.tensor, B: tl.tensor,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, T: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr,
) -> None:  # fmt: skip
    image, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * K + tl.arange(0, K)
    u += image * (H * W * C)
    u_dot += image * (H * W * C)
    q_u += image * (H * W * C)
    p_h += image * ((H // 2) * (W // 2) * C)
    q_h += image * ((H // 2) * (W // 2) * C)
    WINDOWS: tl.constexpr = ((H + 1) // 2) * ((W + 1) // 2)
    own, known = image * C + channel, channel < C
    mean, r = _read(stats, own, known, ACC), _read(stats, B * C + own, known, ACC)
    mean_u, mean_nu = _read(dotted, own, known, ACC), _read(dotted, B * C + own, known, ACC)
    g, s, g_dot = _read(scale, channel, known, ACC), _read(shift, channel, known, ACC), _read(scale_dot, channel, known, ACC)
    of_p, of_np, of_pn_dot = tl.zeros((T, K), ACC), tl.zeros((T, K), ACC), tl.zeros((T, K), ACC)
    of_q, of_nq = tl.zeros((T, K), ACC), tl.zeros((T, K), ACC)
    for first in range(0, WINDOWS, T):
        row, column = _windows(first, T, H, W)
        at, there = _cell(row, column, channel, H, W, C)
        quarter_p, quarter_q = _read(p_h, at, there, ACC) * 0.25, _read(q_h, at, there, ACC) * 0.25
        for corner in tl.static_range(4):
            at, there = _pixel(row, column, corner, channel, H, W, C)
            n = (_read(u, at, there, ACC) - mean[None, :]) * r[None, :]
            n_dot = r[None, :] * (_read(u_dot, at, there, ACC) - mean_u[None, :] - n * mean_nu[None, :])
            alive = g[None, :] * n + s[None, :] > 0.0
            p, q = tl.where(alive, quarter_p, 0.0), tl.where(alive, quarter_q, 0.0)
            of_p += p
            of_np += n * p
            of_pn_dot += p * n_dot
            of_q += q
            of_nq += n * q
    sum_p, sum_np, sum_pn_dot = tl.sum(of_p, 0), tl.sum(of_np, 0), tl.sum(of_pn_dot, 0)
    sum_q, sum_nq = tl.sum(of_q, 0), tl.sum(of_nq, 0)
    tl.store(partial + own, sum_nq + sum_pn_dot, mask=known)
    tl.store(partial + B * C + own, sum_q, mask=known)
    k = g_dot - r * g * mean_nu
    mean_v = (g * sum_q + k * sum_p) * (1.0 / (H * W))
    times_n = (g * (sum_nq + sum_pn_dot) + k * sum_np) * (1.0 / (H * W))
    times_n_dot = g * sum_np * (1.0 / (H * W))
    for first in range(0, WINDOWS, T):
        row, column = _windows(first, T, H, W)
        at, there = _cell(row, column, channel, H, W, C)
        quarter_p, quarter_q = _read(p_h, at, there, ACC) * 0.25, _read(q_h, at, there, ACC) * 0.25
        mixed = g[None, :] * quarter_q + k[None, :] * quarter_p
        for corner in tl.static_range(4):
            at, there = _pixel(row, column, corner, channel, H, W, C)
            n = (_read(u, at, there, ACC) - mean[None, :]) * r[None, :]
            n_dot = r[None, :] * (_read(u_dot, at, there, ACC) - mean_u[None, :] - n * mean_nu[None, :])
            v = tl.where(g[None, :] * n + s[None, :] > 0.0, mixed, 0.0)
            out = v - mean_v[None, :] - n * times_n[None, :] - n_dot * times_n_dot[None, :]
            tl.store(q_u + at, r[None, :] * out, mask=there)


class TritonBlocks(TorchConvolutions):
    """See `ddcore.matching.blocks.interface`. u may also be bfloat16: then so is every map, while statistics and sums are float32."""

    name = "triton"
    memory_format = torch.channels_last
    takes_bfloat16 = True

    def forward(self, u: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Saved]:
        u = _dense(u)
        h, stats = _pooled(u), _two(u)
        _run(_forward, u, u, scale, shift, h, stats, EPSILON=EPS)
        return h, (u, stats)

    def backward(self, saved: Saved, scale: Tensor, shift: Tensor, p_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, stats = saved
        p_u, partial = torch.empty_like(u), _two(u)
        _run(_backward, u, u, stats, scale, shift, _dense(p_h), p_u, partial)
        d_scale, d_shift = partial.sum(1)
        return p_u, d_scale, d_shift

    def tangent(
        self, saved: Saved, scale: Tensor, shift: Tensor, u_dot: Tensor, scale_dot: Tensor, shift_dot: Tensor
    ) -> tuple[Tensor, Saved]:
        u, stats = saved
        u_dot, h_dot, means = _dense(u_dot), _pooled(u), _two(u)
        _run(_tangent, u, u, stats, scale, shift, u_dot, scale_dot, shift_dot, h_dot, means)
        return h_dot, (u_dot, means)

    def second(
        self, saved: Saved, dotted: Saved, scale: Tensor, shift: Tensor, scale_dot: Tensor, p_h: Tensor, q_h: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        (u, stats), (u_dot, means) = saved, dotted
        q_u, partial = torch.empty_like(u), _two(u)
        _run(_second, u, u, stats, u_dot, means, scale, shift, scale_dot, _dense(p_h), _dense(q_h), q_u, partial)
        d_scale, d_shift = partial.sum(1)
        return q_u, d_scale, d_shift


def tried(device: torch.device) -> TritonBlocks:
    """The blocks, after a small map, odd in every size, went through them as it does through the eager ones; else RuntimeError.

    Importing Triton is not enough: it builds its launcher with the machine's C compiler, which images for running often lack.
    """
    make = torch.Generator().manual_seed(0)
    u, p_h, vectors = (torch.randn(shape, generator=make).to(device) for shape in ((2, 3, 5, 7), (2, 3, 2, 3), (5, 3)))
    results = []
    for blocks in (TritonBlocks(), EagerBlocks()):
        try:
            h, saved = blocks.forward(u, vectors[0], vectors[1])
            h_dot, dotted = blocks.tangent(saved, vectors[0], vectors[1], u, vectors[2], vectors[3])
            back = blocks.backward(saved, vectors[0], vectors[1], p_h)
            results.append([h, h_dot, *back, *blocks.second(saved, dotted, vectors[0], vectors[1], vectors[2], p_h, h)])
        except (OSError, subprocess.CalledProcessError, TritonError) as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
    if not all(torch.allclose(found, right, rtol=1e-3, atol=1e-3) for found, right in zip(*results, strict=True)):
        raise RuntimeError("they do not compute the block")
    return TritonBlocks()


def _run(kernel: Any, u: Tensor, *tensors: Tensor, **constants: float) -> None:
    """Start `kernel` on its tensors, over all images and channels of maps like u."""
    b, c, height, width = u.shape
    windows, channels = tile_of(b, c, ((height + 1) // 2) * ((width + 1) // 2))
    accumulate = tl.float64 if u.dtype == torch.float64 else tl.float32
    with torch.cuda.device_of(u):  # Triton starts on the current device, whatever the tensors' is
        kernel[(b, triton.cdiv(c, channels))](*tensors, b, H=height, W=width, C=c, T=windows, K=channels, ACC=accumulate, **constants)


def tile_of(images: int, channels: int, windows: int) -> tuple[int, int]:
    """Windows and channels that a program has in hand at a time; both powers of two."""
    wide = min(32, triton.next_power_of_2(channels))
    while wide > 8 and images * triton.cdiv(channels, wide) < PROGRAMS:
        wide //= 2
    return min(triton.next_power_of_2(windows), TILE // wide), wide


def _dense(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def _pooled(u: Tensor) -> Tensor:
    b, c, height, width = u.shape
    return torch.empty((b, c, height // 2, width // 2), dtype=u.dtype, device=u.device, memory_format=torch.channels_last)


def _two(u: Tensor) -> Tensor:
    """Room for two numbers for each image and channel, in the precision of sums."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    return torch.empty((2, *u.shape[:2]), dtype=dtype, device=u.device)
