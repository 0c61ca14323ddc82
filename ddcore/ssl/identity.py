"""An alarm on the moving average: its defining identity, tau' = m tau + (1 - m) s', watched along one random direction."""

from dataclasses import dataclass

import torch
from torch import nn

from ddcore.errors import DdcoreError
from ddcore.transfer import send

LIMIT = 1e-4  # in float32, whose rounding leaves about 1e-6
LEAST_GAP = 0.03  # of the teacher's length: below it, rounding of the parameters would show


@dataclass(frozen=True)
class Before:
    """What the identity needs of the moment before an update: projections of teacher and student, and their distance (scalars)."""

    teacher: torch.Tensor
    student: torch.Tensor
    gap: torch.Tensor


class EmaIdentity:
    """Projects teacher and student on one direction of random signs, fixed for a run, and compares.

    For random signs u, the mean of <u, r>^2 is |r|^2, so one number stands for the whole vector r = tau' - m tau - (1 - m) s'
    (Johnson & Lindenstrauss). Sums are float64; nothing waits for the device.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, random: torch.Generator) -> None:
        self._teacher, self._student = teacher, student
        self._signs = [torch.randint(0, 2, p.shape, generator=random, dtype=torch.int8) * 2 - 1 for p in teacher.parameters()]

    @torch.no_grad()
    def before(self) -> Before:
        """To be called when the student has made its step and the teacher has not."""
        pairs = zip(self._teacher.parameters(), self._student.parameters(), strict=True)
        gap = sum((s.double() - t.double()).square().sum() for t, s in pairs)
        return Before(self._projected(self._teacher), self._projected(self._student), torch.as_tensor(gap).sqrt())

    @torch.no_grad()
    def residual(self, before: Before, momentum: float) -> torch.Tensor:
        """|<u, r>| after the update, relative to the distance of the two, or to 3 % of the teacher's length where that is more."""
        found = self._projected(self._teacher) - momentum * before.teacher - (1 - momentum) * before.student
        length = torch.as_tensor(sum(p.double().square().sum() for p in self._teacher.parameters())).sqrt()
        return found.abs() / torch.maximum(before.gap, LEAST_GAP * length)

    def _projected(self, module: nn.Module) -> torch.Tensor:
        pairs = zip(module.parameters(), self._signs, strict=True)
        terms = ((p.double() * send(sign, p.device)).sum() for p, sign in pairs)
        return torch.as_tensor(sum(terms))


def refuse_broken(residual: float, step: int) -> None:
    """Raise `DdcoreError` internal if the teacher is not the moving average that it should be."""
    if residual > LIMIT:
        raise DdcoreError(
            "internal",
            f"at step {step} the DINO teacher is not the moving average of its student: the identity is off by {residual:.1e}"
            f" (relative; at most {LIMIT:.0e})",
            "a fault of the program or the device, not of your settings: run it again, and if it comes back, report this message"
            " with the spec, the seed, the device, and the versions of potstill and torch",
        )
