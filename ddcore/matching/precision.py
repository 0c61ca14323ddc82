"""How exactly products are computed: float32, TF32 (CUDA's default here), or bfloat16 after a check against float32 on the run's own data.

Parameters, statistics, sums and everything outside convolutions stay float32 in all three. What bfloat16 does to the derivatives of a
given network and data set cannot be known beforehand, so it is measured before the first iteration: `guarded`.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from ddcore.errors import DdcoreError
from ddcore.matching.blocks.convolution import TorchConvolutions
from ddcore.matching.blocks.interface import Blocks, Saved
from ddcore.matching.cores import Core, Forward
from ddcore.matching.explicit import ExplicitConvNet

log = logging.getLogger(__name__)

Choice = Literal["auto", "float32", "tf32", "bf16"]
Precision = Literal["float32", "tf32", "bf16"]

MIN_COSINE = 0.99  # of each derivative in bfloat16 with the one in float32


def set_precision(choice: Choice, device: torch.device) -> Precision:
    """Set what products of float32 tensors on `device` are computed in, for this process; returns what `choice` comes to there.

    `auto` is tf32 on CUDA and float32 elsewhere; tf32 elsewhere is float32, with a line in the log. float64 is never touched. With bf16
    the products that stay float32 are TF32 on CUDA.
    """
    cuda = device.type == "cuda"
    if choice == "tf32" and not cuda:
        log.info("TF32 is CUDA's: on %s, products are computed in float32", device.type)
    ours: Precision = "tf32" if cuda else "float32"
    precision = ours if choice == "auto" or choice == "tf32" else choice
    if cuda:
        _set_tf32(precision != "float32")
    return precision


def _set_tf32(enabled: bool) -> None:
    # The two older switches: the newer fp32_precision makes torch.compile, which reads one of these, raise an error.
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    torch.backends.cudnn.allow_tf32 = enabled


@contextmanager
def true_float32() -> Iterator[None]:
    """No TF32 inside; what was set before holds again afterwards."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_tf32(False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class HalfBlocks(TorchConvolutions):
    """Other blocks with convolutions, and the maps between them, in bfloat16; statistics and sums are float32 as they were.

    Blocks that take bfloat16 maps get them as they are (and so read half as much), others get float32 copies.
    """

    def __init__(self, inner: Blocks) -> None:
        self.inner = inner
        self.name = f"bfloat16 {inner.name}"
        self.memory_format = inner.memory_format
        self._wide: Callable[[Tensor], Tensor] = _same if getattr(inner, "takes_bfloat16", False) else Tensor.float

    def forward(self, u: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Saved]:
        h, saved = self.inner.forward(self._wide(u), scale, shift)
        return _half(h), saved

    def backward(self, saved: Saved, scale: Tensor, shift: Tensor, p_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p_u, d_scale, d_shift = self.inner.backward(saved, scale, shift, self._wide(p_h))
        return _half(p_u), d_scale, d_shift

    def tangent(
        self, saved: Saved, scale: Tensor, shift: Tensor, u_dot: Tensor, scale_dot: Tensor, shift_dot: Tensor
    ) -> tuple[Tensor, Saved]:
        h_dot, dotted = self.inner.tangent(saved, scale, shift, self._wide(u_dot), scale_dot, shift_dot)
        return _half(h_dot), dotted

    def second(
        self, saved: Saved, dotted: Saved, scale: Tensor, shift: Tensor, scale_dot: Tensor, p_h: Tensor, q_h: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        q_u, d_scale, d_shift = self.inner.second(saved, dotted, scale, shift, scale_dot, self._wide(p_h), self._wide(q_h))
        return _half(q_u), d_scale, d_shift

    def convolve(self, h: Tensor, weight: Tensor) -> Tensor:
        return super().convolve(_half(h), _half(weight))

    def convolve_back(
        self, p_u: Tensor, h: Tensor, weight: Tensor, for_input: bool = True, for_weight: bool = True
    ) -> tuple[Tensor, Tensor]:
        d_h, d_weight = super().convolve_back(_half(p_u), _half(h), _half(weight), for_input, for_weight)
        return d_h, d_weight.float() if for_weight else d_weight

    def image_gradient(self, q_u: Tensor, p_u: Tensor, weight: Tensor, weight_dot: Tensor) -> Tensor:
        return super().image_gradient(q_u, p_u, _half(weight), _half(weight_dot)).float()


def _half(v: Tensor) -> Tensor:
    return v.to(torch.bfloat16)


def _same(v: Tensor) -> Tensor:
    return v


class AutocastCore(Core):
    """The generic core with the network run under autocast to bfloat16; the loss, and all that comes back, is float32."""

    name = "generic, bfloat16"

    def gradient(self, theta: Tensor, x: Tensor, y: Tensor, keep: bool = False) -> Forward:
        with torch.autocast(x.device.type, torch.bfloat16):
            return super().gradient(theta, x, y, keep)


def half_core(core: Core) -> Core:
    """The same derivatives with convolutions (for a generic core: whatever autocast chooses) in bfloat16; to be `guarded`."""
    if isinstance(core, ExplicitConvNet):
        return ExplicitConvNet(core.network, HalfBlocks(core.blocks))
    return AutocastCore(core.network)


def guarded(exact: Core, half: Core, theta: Tensor, x: Tensor, y: Tensor, direction: Tensor, note: Callable[[str], None]) -> Core:
    """`half`, if each of its derivatives points where that of `exact` in float32 does. Arguments as of `Core`: data of the run itself.

    note: is given the cosines, as text. Raises `DdcoreError` invalid_spec where one is below `MIN_COSINE` or not a number.
    """
    with true_float32():
        expected = _derivatives(exact, theta, x, y, direction)
    found = _derivatives(half, theta, x, y, direction)
    cosines = {name: _cosine(found[name], expected[name]) for name in expected}
    numbers = ", ".join(f"{name} {cosine:.5f}" for name, cosine in cosines.items())
    note(f"bfloat16 against float32, cosines: {numbers} (at least {MIN_COSINE} is asked for)")
    if all(cosine >= MIN_COSINE for cosine in cosines.values()):
        return half
    worst = min(cosines, key=lambda name: (cosines[name] == cosines[name], cosines[name]))
    raise DdcoreError(
        "invalid_spec",
        f"bfloat16 is too coarse here: the cosine of {worst} with its float32 value is {cosines[worst]:.5f}, {MIN_COSINE} is needed;"
        f" all: {numbers}",
        "set method.precision to 'auto', 'tf32' (CUDA) or 'float32'",
    )


def _derivatives(core: Core, theta: Tensor, x: Tensor, y: Tensor, direction: Tensor) -> dict[str, Tensor]:
    back = core.pull_back(theta, x, y, direction)
    return {"gradient": core.gradient(theta, x, y).gradient, "d_theta": back.theta, "d_x": back.x, "d_y": back.y}


def _cosine(found: Tensor, expected: Tensor) -> float:
    a, b = found.double().flatten(), expected.double().flatten()
    if not (a.any() or b.any()):
        return 1.0  # both nothing, as of a dead network's images
    return float(a @ b / (a.norm() * b.norm()))  # one of them nothing: not a number, which is refused
