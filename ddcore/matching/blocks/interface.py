"""What an implementation of a ConvNet's block, less its convolution, must offer.

A block takes the convolution's output u [b, c, h, w] to pool(relu(z)) [b, c, h // 2, w // 2], with n its instance norm, J the norm's
Jacobian (symmetric), g and s a scale and a shift for each channel:

    n = (u - mean u) r,  r = 1 / sqrt(var u + eps)          n_dot = J u_dot = r (u_dot - mean u_dot - n mean(n u_dot))
    z = g n + s                                             z_dot = g_dot n + g n_dot + s_dot
    h = pool(relu(z))                                       h_dot = pool([z > 0] z_dot)

A dot is the derivative along a direction in parameter space. With S = l_dot the slope of the inner loss along it, P stands for
dS/d(dotted value), which equals dl/d(value), and Q for dS/d(value):

    P_z = [z > 0] unpool(P_h)      P_n = g P_z                 P_u = J P_n
    Q_z = [z > 0] unpool(Q_h)      Q_n = g Q_z + g_dot P_z     Q_u = J (Q_n - r (P_n mean(n u_dot) + u_dot mean(n P_n)))
                                                                     - r n mean(P_n n_dot)
    dl/dg = sum(P_z n)             dS/dg = sum(Q_z n + P_z n_dot)
    dl/ds = sum(P_z)               dS/ds = sum(Q_z)

Means run over the pixels of one image and channel; sums for g and s also over images. Where a side is odd, pooling drops the last
row or column, which still takes part in the norm. Tensors are float32 or float64 (what else an implementation takes, it says),
dense in the implementation's `memory_format`.
"""

from typing import Protocol

import torch
from torch import Tensor

EPS = 1e-5  # GroupNorm's

Saved = tuple[Tensor, ...]  # what one derivative leaves for the next; each implementation has its own


class Blocks(Protocol):
    """One implementation, with the convolutions that go between (`TorchConvolutions` has them).

    No argument is written to; nothing returned carries a graph; nothing waits for the device.
    """

    name: str
    memory_format: torch.memory_format

    def forward(self, u: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Saved]:
        """h, and what the others need. u [b, c, h, w]; scale, shift [c]. `u` may be kept, so it must not be changed afterwards."""

    def backward(self, saved: Saved, scale: Tensor, shift: Tensor, p_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """P_u [b, c, h, w], dl/dg [c] and dl/ds [c], from P_h [b, c, h // 2, w // 2]."""

    def tangent(
        self, saved: Saved, scale: Tensor, shift: Tensor, u_dot: Tensor, scale_dot: Tensor, shift_dot: Tensor
    ) -> tuple[Tensor, Saved]:
        """h_dot, and what `second` needs of this direction."""

    def second(
        self, saved: Saved, dotted: Saved, scale: Tensor, shift: Tensor, scale_dot: Tensor, p_h: Tensor, q_h: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Q_u [b, c, h, w], dS/dg [c] and dS/ds [c], from P_h and Q_h."""

    def convolve(self, h: Tensor, weight: Tensor) -> Tensor:
        """u [b, c_out, h, w] = weight [c_out, c_in, 3, 3] * h [b, c_in, h, w], with padding 1."""

    def convolve_back(
        self, p_u: Tensor, h: Tensor, weight: Tensor, for_input: bool = True, for_weight: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The gradients of h and of the weight, as far as they are wanted (nothing of use in the other's place)."""

    def image_gradient(self, q_u: Tensor, p_u: Tensor, weight: Tensor, weight_dot: Tensor) -> Tensor:
        """weight^T q_u + weight_dot^T p_u [b, c_in, h, w], contiguous."""
