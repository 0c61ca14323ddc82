"""The block in plain PyTorch operations: right on every device and dtype, and what the others are tested against."""

import torch
from torch import Tensor
from torch.nn import functional

from ddcore.matching.blocks.interface import EPS, Saved


class EagerBlocks:
    """See `ddcore.matching.blocks.interface`."""

    name = "eager"
    memory_format = torch.contiguous_format

    def forward(self, u: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Saved]:
        centred = u - _mean(u)
        r = (_mean(centred.square()) + EPS).rsqrt()  # many times faster than var_mean on small maps
        n = centred.mul_(r)
        z = torch.addcmul(_wide(shift), n, _wide(scale))
        alive = (z > 0).to(z.dtype)
        return functional.avg_pool2d(z.relu_(), 2), (n, r, alive)

    def backward(self, saved: Saved, scale: Tensor, shift: Tensor, p_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, r, alive = saved
        p_z = _unpool(p_h, alive)
        return _jacobian(n, r, p_z * _wide(scale)), (p_z * n).sum((0, 2, 3)), p_z.sum((0, 2, 3))

    def tangent(
        self, saved: Saved, scale: Tensor, shift: Tensor, u_dot: Tensor, scale_dot: Tensor, shift_dot: Tensor
    ) -> tuple[Tensor, Saved]:
        n, r, alive = saved
        mean_nu = _mean(n * u_dot)
        n_dot = (u_dot - _mean(u_dot)).addcmul_(n, mean_nu, value=-1).mul_(r)
        z_dot = torch.addcmul(_wide(shift_dot), n, _wide(scale_dot)).addcmul_(n_dot, _wide(scale))
        return functional.avg_pool2d(z_dot.mul_(alive), 2), (u_dot, n_dot, mean_nu)

    def second(
        self, saved: Saved, dotted: Saved, scale: Tensor, shift: Tensor, scale_dot: Tensor, p_h: Tensor, q_h: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        (n, r, alive), (u_dot, n_dot, mean_nu) = saved, dotted
        p_z, q_z = _unpool(p_h, alive), _unpool(q_h, alive)
        d_scale = torch.addcmul(q_z * n, p_z, n_dot).sum((0, 2, 3))
        p_n = p_z * _wide(scale)
        q_n = torch.addcmul(q_z * _wide(scale), p_z, _wide(scale_dot))
        inner = q_n.addcmul_(p_n, r * mean_nu, value=-1).addcmul_(u_dot, r * _mean(n * p_n), value=-1)
        q_u = _jacobian(n, r, inner).addcmul_(n, r * _mean(p_n * n_dot), value=-1)
        return q_u, d_scale, q_z.sum((0, 2, 3))


def _mean(v: Tensor) -> Tensor:
    return v.mean((2, 3), keepdim=True)


def _wide(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


def _jacobian(n: Tensor, r: Tensor, v: Tensor) -> Tensor:
    """J v of the norm."""
    return (v - _mean(v)).addcmul_(n, _mean(n * v), value=-1).mul_(r)


def _unpool(p_h: Tensor, alive: Tensor) -> Tensor:
    """Back through 2x2 average pooling and ReLU; rows and columns that pooling dropped get nothing."""
    b, c, h, w = p_h.shape
    up = (0.25 * p_h)[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)
    missing = (alive.shape[3] - up.shape[3], alive.shape[2] - up.shape[2])
    if any(missing):
        up = functional.pad(up, (0, missing[0], 0, missing[1]))
    return up.mul_(alive)
