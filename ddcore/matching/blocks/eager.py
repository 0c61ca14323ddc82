"""The block in plain PyTorch operations: right on every device and dtype, and what the others are tested against.

Everything large is a linear combination of a few maps with a coefficient for each image and channel, so means are taken first and each
result is then written in as few passes over memory as it has terms.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ddcore.matching.blocks.convolution import TorchConvolutions
from ddcore.matching.blocks.interface import EPS, Saved


class EagerBlocks(TorchConvolutions):
    """See `ddcore.matching.blocks.interface`. Channels last: pooling is several times faster there on a CPU, and convolutions a little."""

    name = "eager"
    memory_format = torch.channels_last

    def forward(self, u: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Saved]:
        b, c, height, width = u.shape
        n, _, r = torch.native_group_norm(u, None, None, b, c, height * width, c, EPS)
        z = torch.addcmul(_wide(shift), n, _wide(scale)).relu_()
        return functional.avg_pool2d(z, 2), (n, r.view(b, c, 1, 1), z.sign_())  # the sign is [z > 0] now, at a quarter of a comparison

    def backward(self, saved: Saved, scale: Tensor, shift: Tensor, p_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, r, alive = saved
        p_z = _unpool(p_h, alive)
        mean_p, mean_np = _mean(p_z), _mean(n * p_z)
        k = r * _wide(scale)
        p_u = torch.addcmul(-k * mean_p, p_z, k).addcmul_(n, -k * mean_np)
        return p_u, _total(mean_np, n), _total(mean_p, n)

    def tangent(
        self, saved: Saved, scale: Tensor, shift: Tensor, u_dot: Tensor, scale_dot: Tensor, shift_dot: Tensor
    ) -> tuple[Tensor, Saved]:
        n, r, alive = saved
        mean_u, mean_nu = _mean(u_dot), _mean(n * u_dot)
        k = r * _wide(scale)
        z_dot = torch.addcmul(_wide(shift_dot) - k * mean_u, u_dot, k).addcmul_(n, _wide(scale_dot) - k * mean_nu)
        return functional.avg_pool2d(z_dot.mul_(alive), 2), (u_dot, mean_u, mean_nu)

    def second(
        self, saved: Saved, dotted: Saved, scale: Tensor, shift: Tensor, scale_dot: Tensor, p_h: Tensor, q_h: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        (n, r, alive), (u_dot, mean_u, mean_nu) = saved, dotted
        p_z, q_z = _unpool(p_h, alive), _unpool(q_h, alive)
        g, of_p = _wide(scale), _wide(scale_dot) - r * mean_nu * _wide(scale)  # inner = g q_z + of_p p_z - r mean(n P_n) u_dot
        mean_p, mean_np, mean_q, mean_nq = _mean(p_z), _mean(n * p_z), _mean(q_z), _mean(n * q_z)
        mean_pn = r * (_mean(p_z * u_dot) - mean_u * mean_p - mean_nu * mean_np)  # of P_z n_dot
        of_u = r * g * mean_np
        mean_inner = g * mean_q + of_p * mean_p - of_u * mean_u
        mean_ninner = g * mean_nq + of_p * mean_np - of_u * mean_nu
        q_u = torch.addcmul(-r * mean_inner, q_z, r * g).addcmul_(p_z, r * of_p).addcmul_(u_dot, -r * of_u)
        q_u.addcmul_(n, -r * (mean_ninner + g * mean_pn))
        return q_u, _total(mean_nq + mean_pn, n), _total(mean_q, n)


def _mean(v: Tensor) -> Tensor:
    return v.mean((2, 3), keepdim=True)


def _total(mean: Tensor, maps: Tensor) -> Tensor:
    """[c], the sum over images and pixels, from means [b, c, 1, 1] over the pixels of `maps`."""
    return mean.sum((0, 2, 3)) * (maps.shape[2] * maps.shape[3])


def _wide(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


def _unpool(p_h: Tensor, alive: Tensor) -> Tensor:
    """Back through 2x2 average pooling and ReLU; rows and columns that pooling dropped get nothing."""
    height, width = p_h.shape[2:]
    odd = alive.shape[2] % 2 or alive.shape[3] % 2
    out = torch.zeros_like(alive) if odd else torch.empty_like(alive)
    torch.mul(_cells(alive, height, width), (0.25 * p_h)[:, :, :, None, :, None], out=_cells(out, height, width))
    return out


def _cells(maps: Tensor, height: int, width: int) -> Tensor:
    """[b, c, 2 height or more, 2 width or more] as the cells that pooling takes together, [b, c, height, 2, width, 2]."""
    cells: Tensor = maps[:, :, : 2 * height, : 2 * width].unflatten(3, (width, 2)).unflatten(2, (height, 2))
    return cells
