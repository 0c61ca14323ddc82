"""The convolutions between blocks, 3x3 with padding 1 and without bias, by PyTorch's own kernels."""

import torch
from torch import Tensor
from torch.nn import functional


class TorchConvolutions:
    """Base of the implementations of `Blocks` that leave convolutions to PyTorch."""

    def convolve(self, h: Tensor, weight: Tensor) -> Tensor:
        """u = weight * h: [b, c_out, h, w]. h [b, c_in, h, w], weight [c_out, c_in, 3, 3]."""
        return functional.conv2d(h, weight, padding=1)

    def convolve_back(
        self, p_u: Tensor, h: Tensor, weight: Tensor, for_input: bool = True, for_weight: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Back through `convolve`: the gradients of h and of the weight, as far as they are wanted."""
        d_h, d_weight, _ = torch.ops.aten.convolution_backward(
            p_u, h, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [for_input, for_weight, False]
        )
        return d_h, d_weight

    def image_gradient(self, q_u: Tensor, p_u: Tensor, weight: Tensor, weight_dot: Tensor) -> Tensor:
        """weight^T q_u + weight_dot^T p_u: [b, c_in, h, w] contiguous, for the few channels of an image.

        As one product a tap and a fold, since libraries' backward convolutions are slow where c_in is 1 or 3: 2/3 of their time at
        64 x 128 x 32 x 32 on a CPU, and a quarter at 20 x 8 x 8 x 8.
        """
        b, c, height, width = q_u.shape
        q, p = (v.permute(0, 2, 3, 1).reshape(b, -1, c).transpose(1, 2) for v in (q_u, p_u))
        taps = torch.matmul(weight.reshape(c, -1).t(), q)
        taps.baddbmm_(weight_dot.reshape(c, -1).t().expand(b, -1, -1), p)
        return functional.fold(taps, (height, width), 3, padding=1)
