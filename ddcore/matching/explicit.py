"""An instance-norm ConvNet's gradient, and its derivative along a direction, written out as a few large passes.

Automatic differentiation twice over builds and walks a large graph for every inner step; for a ConvNet the passes are short enough
to write down. With S(theta, x, y) = <grad_theta l, b> = l_dot the slope along b, one forward pass carries tangents (dots) through the
network and one reverse pass carries P = dS/d(tangent) and Q = dS/d(value) (Pearlmutter's R-operator, 1994, here with the derivative in
the images as well). P alone is ordinary back-propagation, so it is what the plain gradient has computed already. A block's convolution:

    u = W * h      u_dot = W * h_dot + W_dot * h      (its bias cancels in the norm)
    P_h = W^T P_u  Q_h = W^T Q_u + W_dot^T P_u        dS/dW = h^T Q_u + h_dot^T P_u

and the rest of the block, norm, ReLU and pooling, is `ddcore.matching.blocks`.
"""

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddcore.matching.blocks.choose import blocks_for
from ddcore.matching.blocks.interface import Blocks, Saved
from ddcore.matching.cores import Backward, Core, Forward
from ddcore.networks.convnet import ConvNet
from ddcore.networks.flat import FlatNetwork

log = logging.getLogger(__name__)


def core_of(network: FlatNetwork, device: torch.device, blocks: Blocks | None = None) -> Core:
    """An exact core for `network` on `device`: for plain ConvNets the explicit one, for all others automatic differentiation."""
    module = network.module
    if type(module) is ConvNet and module.linear is not None:  # a subclass may compute something else
        return ExplicitConvNet(network, blocks or blocks_for(device))
    log.info("%s is not a plain ConvNet: its trajectories are matched by automatic differentiation", type(module).__name__)
    return Core(network)


class Block(NamedTuple):
    """One block's parameters, or a direction in them; the convolution's bias is not among them."""

    weight: Tensor  # [c_out, c_in, 3, 3], in the blocks' layout
    scale: Tensor
    shift: Tensor


class Parts(NamedTuple):
    """A flat vector, taken apart."""

    blocks: list[Block]
    linear: Tensor  # [d, f]
    bias: Tensor


@dataclass(frozen=True)
class Pass:
    """One forward and one reverse pass through the network, P of `explicit`'s notation; a list has one entry a block.

    A pull-back takes entries away as it goes, last block first, so that what it has used is free again.
    """

    parts: Parts
    inputs: list[Tensor]  # h before each block, and after the last
    saved: list[Saved]
    p_u: list[Tensor | None]  # None where it was not needed yet
    p_h: list[Tensor]  # at each block's output
    p_out: Tensor  # [k, d]


class ExplicitConvNet(Core):
    """Both derivatives of a ConvNet without automatic differentiation; exact up to rounding."""

    def __init__(self, network: FlatNetwork, blocks: Blocks) -> None:
        super().__init__(network)
        module = network.module
        if not isinstance(module, ConvNet) or module.linear is None:
            raise TypeError(f"the explicit step knows ConvNet students only, not {type(module).__name__}")
        self.depth = len(module.blocks) // 4
        self.blocks = blocks
        self.name = f"explicit, {blocks.name} blocks"

    @torch.no_grad()
    def gradient(self, theta: Tensor, x: Tensor, y: Tensor, keep: bool = False) -> Forward:
        loss, done = self._there_and_back(theta, x, y, flat := torch.empty_like(theta))
        return Forward(loss, flat, done if keep else None)

    @torch.no_grad()
    def pull_back(self, theta: Tensor, x: Tensor, y: Tensor, direction: Tensor, kept: Any = None) -> Backward:
        """As `Core.pull_back`; what is kept is taken apart on the way, so it serves once."""
        done: Pass = kept or self._there_and_back(theta, x, y, None)[1]
        parts, dots, d_theta = done.parts, self._parts(direction), torch.empty_like(theta)
        dotted, h_dots = self._tangent(dots, done)
        features, features_dot = (maps[-1].flatten(1).to(theta.dtype) for maps in (done.inputs, h_dots))
        out_dot = torch.addmm(dots.bias, features, dots.linear.t()).addmm_(features_dot, parts.linear.t())
        q_out = out_dot * (2.0 / out_dot.numel())
        places = self._places(d_theta)
        torch.mm(q_out.t(), features, out=places[-2]).addmm_(done.p_out.t(), features_dot)
        torch.sum(q_out, 0, out=places[-1])
        q_h = self._like((q_out @ parts.linear).addmm_(done.p_out, dots.linear), h_dots[-1])
        done.inputs.pop()
        for depth in reversed(range(self.depth)):
            (weight, scale, shift), (weight_dot, scale_dot, _) = parts.blocks[depth], dots.blocks[depth]
            h, saved, p_u, p_h = done.inputs.pop(), done.saved.pop(), done.p_u.pop(), done.p_h.pop()
            q_u, d_scale, d_shift = self.blocks.second(saved, dotted.pop(), scale, shift, scale_dot, p_h, q_h)
            q_h, d_weight = self.blocks.convolve_back(q_u, h, weight, for_input=depth > 0)
            if p_u is None:
                p_u = self.blocks.backward(saved, scale, shift, p_h)[0]
            del saved
            if depth:
                more_h, more_weight = self.blocks.convolve_back(p_u, h_dots[depth - 1], weight_dot)
                q_h += more_h
                d_weight += more_weight
            else:  # the images do not move, so there is no h_dot
                d_x = self.blocks.image_gradient(q_u, p_u, weight, weight_dot)
            del q_u, p_u
            _fill(places[4 * depth :], d_weight, d_scale, d_shift)
        return Backward(torch.sum(done.p_out * out_dot), d_theta, d_x, -q_out)

    def _places(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector: weight, bias, scale, shift of each block; weight and bias of the linear layer."""
        parts = flat.split(self.network.sizes)
        return [part.view(shape) for part, shape in zip(parts, self.network.shapes, strict=True)]

    def _parts(self, flat: Tensor) -> Parts:
        *blocks, linear, bias = self._places(flat)
        own = [
            Block(blocks[i].contiguous(memory_format=self.blocks.memory_format), blocks[i + 2], blocks[i + 3])
            for i in range(0, len(blocks), 4)
        ]
        return Parts(own, linear, bias)

    def _like(self, rows: Tensor, maps: Tensor) -> Tensor:
        """rows [k, f] as feature maps of the shape of `maps`, in the blocks' layout."""
        return rows.view(maps.shape).contiguous(memory_format=self.blocks.memory_format)

    def _there_and_back(self, theta: Tensor, x: Tensor, y: Tensor, gradient: Tensor | None) -> tuple[Tensor, Pass]:
        """Loss, and the passes; writes dl/d(theta) to `gradient` [P] if it is given."""
        parts = self._parts(theta)
        inputs, saved = [x.contiguous(memory_format=self.blocks.memory_format)], []
        for weight, scale, shift in parts.blocks:
            h, own = self.blocks.forward(self.blocks.convolve(inputs[-1], weight), scale, shift)
            inputs.append(h)
            saved.append(own)
        features = inputs[-1].flatten(1).to(theta.dtype)  # blocks may be coarser inside
        error = torch.addmm(parts.bias, features, parts.linear.t()) - y
        p_out = error * (2.0 / error.numel())
        places = None if gradient is None else self._places(gradient)
        if places is not None:
            torch.mm(p_out.t(), features, out=places[-2])
            torch.sum(p_out, 0, out=places[-1])
        p_h = self._like(p_out @ parts.linear, inputs[-1])
        p_hs: list[Tensor] = []
        p_us: list[Tensor | None] = []
        for depth in reversed(range(self.depth)):
            p_hs.append(p_h)
            if places is None and depth == 0:
                p_us.append(None)  # a map of the images' size, the largest there is: not before something reads it
                break
            weight, scale, shift = parts.blocks[depth]
            p_u, d_scale, d_shift = self.blocks.backward(saved[depth], scale, shift, p_h)
            p_us.append(p_u)
            p_h, d_weight = self.blocks.convolve_back(p_u, inputs[depth], weight, depth > 0, places is not None)
            if places is not None:
                _fill(places[4 * depth :], d_weight, d_scale, d_shift)
        return error.square().mean(), Pass(parts, inputs, saved, p_us[::-1], p_hs[::-1], p_out)

    def _tangent(self, dots: Parts, done: Pass) -> tuple[list[Saved], list[Tensor]]:
        """What the blocks keep of the direction, and h_dot at each block's output."""
        dotted: list[Saved] = []
        h_dots: list[Tensor] = []
        for depth, ((weight, scale, shift), dot) in enumerate(zip(done.parts.blocks, dots.blocks, strict=True)):
            u_dot = self.blocks.convolve(done.inputs[depth], dot.weight)
            if h_dots:
                u_dot += self.blocks.convolve(h_dots[-1], weight)
            h_dot, own = self.blocks.tangent(done.saved[depth], scale, shift, u_dot, dot.scale, dot.shift)
            dotted.append(own)
            h_dots.append(h_dot)
        return dotted, h_dots


def _fill(places: list[Tensor], weight: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Write a block's gradients to their places in a flat vector; the bias of the convolution has none."""
    places[0].copy_(weight)
    places[1].zero_()
    places[2].copy_(scale)
    places[3].copy_(shift)
