"""The block as PyTorch operations that torch.compile fuses; for CUDA devices without Triton kernels, and machines that have a compiler.

The formulas are those of `ddcore.matching.blocks.triton_kernels`: only u and its statistics are kept, and the rest is computed again,
which fused code has for nothing. Functions here change nothing in place, since it is the compiler that decides what becomes a buffer.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ddcore.matching.blocks.convolution import TorchConvolutions
from ddcore.matching.blocks.interface import EPS, Saved

log = logging.getLogger(__name__)

LAST = torch.channels_last
SHAPES = 64  # shapes that one function is compiled for, at most: blocks of the network times sizes of batches


def _mean(v: Tensor) -> Tensor:
    return v.mean((2, 3), keepdim=True)


def _wide(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


def _unpool(p_h: Tensor, alive: Tensor) -> Tensor:
    """Back through 2x2 average pooling and ReLU; rows and columns that pooling dropped get nothing."""
    up = (0.25 * p_h).repeat_interleave(2, 2).repeat_interleave(2, 3)
    missing = (alive.shape[3] - up.shape[3], alive.shape[2] - up.shape[2])
    if any(missing):
        up = functional.pad(up, (0, missing[0], 0, missing[1]))
    return torch.where(alive, up, torch.zeros_like(up))


def _forward(u: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = _mean(u)
    r = (_mean((u - mean).square()) + EPS).rsqrt()
    z = _wide(scale) * ((u - mean) * r) + _wide(shift)
    return functional.avg_pool2d(z.relu(), 2).contiguous(memory_format=LAST), mean, r


def _backward(u: Tensor, mean: Tensor, r: Tensor, scale: Tensor, shift: Tensor, p_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = (u - mean) * r
    p_z = _unpool(p_h, _wide(scale) * n + _wide(shift) > 0)
    p_u = r * _wide(scale) * (p_z - _mean(p_z) - n * _mean(n * p_z))
    return p_u.contiguous(memory_format=LAST), (n * p_z).sum((0, 2, 3)), p_z.sum((0, 2, 3))


def _tangent(
    u: Tensor, mean: Tensor, r: Tensor, scale: Tensor, shift: Tensor, u_dot: Tensor, scale_dot: Tensor, shift_dot: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n = (u - mean) * r
    mean_u, mean_nu = _mean(u_dot), _mean(n * u_dot)
    n_dot = r * (u_dot - mean_u - n * mean_nu)
    z_dot = _wide(scale_dot) * n + _wide(scale) * n_dot + _wide(shift_dot)
    alive = _wide(scale) * n + _wide(shift) > 0
    h_dot = functional.avg_pool2d(torch.where(alive, z_dot, torch.zeros_like(z_dot)), 2)
    return h_dot.contiguous(memory_format=LAST), mean_u, mean_nu


def _second(
    saved: Saved, dotted: Saved, scale: Tensor, shift: Tensor, scale_dot: Tensor, p_h: Tensor, q_h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    (u, mean, r), (u_dot, mean_u, mean_nu) = saved, dotted
    n = (u - mean) * r
    n_dot = r * (u_dot - mean_u - n * mean_nu)
    alive, g = _wide(scale) * n + _wide(shift) > 0, _wide(scale)
    p_z, q_z = _unpool(p_h, alive), _unpool(q_h, alive)
    v = g * q_z + (_wide(scale_dot) - r * g * mean_nu) * p_z
    q_u = r * (v - _mean(v) - n * (_mean(n * v) + g * _mean(p_z * n_dot)) - n_dot * (g * _mean(n * p_z)))
    return q_u.contiguous(memory_format=LAST), (n * q_z + p_z * n_dot).sum((0, 2, 3)), q_z.sum((0, 2, 3))


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    found: Callable[..., Any] = torch.compile(  # type: ignore[call-overload]  # its overloads have not heard of recompile_limit
        function, fullgraph=True, dynamic=False, recompile_limit=SHAPES
    )
    return found


class CompiledBlocks(TorchConvolutions):
    """See `ddcore.matching.blocks.interface`. Each function is compiled for each shape when it is first seen, for some seconds."""

    name = "compiled"
    memory_format = LAST

    def __init__(self) -> None:
        self._forward, self._backward = _compiled(_forward), _compiled(_backward)
        self._tangent, self._second = _compiled(_tangent), _compiled(_second)

    def forward(self, u: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Saved]:
        h, mean, r = self._forward(u, scale, shift)
        return h, (u, mean, r)

    def backward(self, saved: Saved, scale: Tensor, shift: Tensor, p_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p_u, d_scale, d_shift = self._backward(*saved, scale, shift, p_h)
        return p_u, d_scale, d_shift

    def tangent(
        self, saved: Saved, scale: Tensor, shift: Tensor, u_dot: Tensor, scale_dot: Tensor, shift_dot: Tensor
    ) -> tuple[Tensor, Saved]:
        h_dot, mean_u, mean_nu = self._tangent(*saved, scale, shift, u_dot, scale_dot, shift_dot)
        return h_dot, (u_dot, mean_u, mean_nu)

    def second(
        self, saved: Saved, dotted: Saved, scale: Tensor, shift: Tensor, scale_dot: Tensor, p_h: Tensor, q_h: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        q_u, d_scale, d_shift = self._second(saved, dotted, scale, shift, scale_dot, p_h, q_h)
        return q_u, d_scale, d_shift


def _twice(v: Tensor) -> Tensor:
    return v + v


@functools.cache
def compiled_blocks(device: torch.device) -> CompiledBlocks | None:
    """The blocks, once torch.compile has shown that it works for `device`; None, and one line in the log, where it does not."""
    try:
        _compiled(_twice)(torch.ones(2, device=device))
    except (RuntimeError, OSError, ImportError) as error:  # no compiler, one that fails, or a device that inductor does not know
        reason = str(error).strip().splitlines() or [type(error).__name__]
        log.warning("torch.compile does not work here for %s: its blocks are not used (%s)", device, reason[0])
        return None
    return CompiledBlocks()
