"""Which piece of which expert's path an iteration matches: a start, a goal, and the way the expert was going there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddcore.experts.store import Trajectories
from ddcore.lag import mean_time, read_time
from ddcore.specs import ImprovedSpec, MatchingSpec

HEADING = 1  # epochs before the goal over which an expert's heading is taken; no window is shorter


@dataclass(frozen=True)
class Window:
    """start, goal, heading: parameters [P] of an expert at s and at s + `expert_epochs`, and its move over the epoch before the goal.

    run_up: inner steps from `start` that lead to where the window begins; there, `start` is the expert's first snapshot.
    """

    start: Tensor
    goal: Tensor
    heading: Tensor | None = None
    run_up: int = 0


@dataclass(frozen=True)
class Pace:
    """How the experts' averaged paths came about: the decay of each step, and the steps of an epoch."""

    decay: float
    epoch_steps: int

    def read_epoch(self, epoch: float) -> float:
        """Where in the recorded path the expert of `epoch` is found: later than `epoch` by the average's lag."""
        return read_time(epoch * self.epoch_steps, self.decay) / self.epoch_steps

    def stands_for(self, snapshot: int) -> float:
        """The epoch that a snapshot stands for: the inverse of `read_epoch`."""
        return mean_time(snapshot * self.epoch_steps, self.decay) / self.epoch_steps


def expert_at(experts: Trajectories, expert: int, epoch: float, pace: Pace | None) -> Tensor:
    """Parameters [P] of an expert at any time, in epochs; for reading only where that is a snapshot's.

    pace: of averaged paths that are to be read later by their lag; None: paths are read as they are. Between two snapshots time goes by
    as what they stand for does, not as they were taken: an average gathers pace while it is young, and so a straight path is read as
    it was. After the last snapshot there is nothing to read: the path stands still there.
    """
    place = epoch if pace is None else pace.read_epoch(epoch)
    before = min(int(place + 1e-6), experts.num_snapshots - 1)
    row = experts.row(expert, before)
    if place - before < 2e-6 or before == experts.num_snapshots - 1:
        return row
    first, last = (float(n) if pace is None else pace.stands_for(n) for n in (before, before + 1))
    return torch.lerp(row, experts.row(expert, before + 1), (epoch - first) / (last - first))


class Windows:
    """Draws windows. pace: of averaged paths that are to be read later by their lag; None: paths are read as they are.

    MKDT (2410.02116, algorithm 1): an expert and a whole epoch s, both uniform. With `continuous`, s is uniform over all times from 0
    to `max_start_epoch` and the path between two snapshots is the straight line. With `growing` g, the latest start grows in equal
    steps over the first part g of the iterations, so that what comes first is learned first (as DATM does, 2310.05773, section 3.3).

    A part `own_starts` of the windows begins where as many inner steps on the set itself as s stands for lead from the expert's first
    snapshot. After distillation nothing puts a network back on an expert's path, and small errors add up along a run: so windows that
    begin where such runs are learn to come back (the same remedy as in imitation learning: DAgger, 1011.0686).
    """

    def __init__(self, experts: Trajectories, spec: MatchingSpec, pace: Pace | None = None) -> None:
        self.experts, self.spec, self.pace = experts, spec, pace
        self._improved = spec if isinstance(spec, ImprovedSpec) else None
        end = spec.max_start_epoch + spec.expert_epochs
        if (last := end if pace is None else pace.read_epoch(end)) > experts.num_snapshots - 1 + 1e-6:
            raise ValueError(f"windows end at epoch {last:.2f} of the recorded paths, which have {experts.num_snapshots - 1}")

    def draw(self, iteration: int, random: torch.Generator) -> Window:
        """The window of iteration `iteration` (from 0)."""
        spec, improved = self.spec, self._improved
        expert = int(torch.randint(self.experts.num_experts, (), generator=random))
        latest = self.latest_start(iteration)
        if improved is None or not improved.continuous:
            begin = float(torch.randint(int(latest) + 1, (), generator=random))
        else:
            begin = float(torch.rand((), generator=random, dtype=torch.float64)) * latest
        end = begin + spec.expert_epochs
        own = improved is not None and improved.own_starts > 0 and float(torch.rand((), generator=random)) < improved.own_starts
        run_up = round(begin * spec.inner_steps / spec.expert_epochs) if own else 0
        start, goal = self.at(expert, 0.0 if own else begin), self.at(expert, end)
        heading = goal - self.at(expert, end - HEADING) if improved is not None and improved.gap else None
        return Window(start, goal, heading, run_up)

    def latest_start(self, iteration: int) -> float:
        """The latest start, in epochs, that iteration `iteration` may draw."""
        latest = float(self.spec.max_start_epoch)
        if self._improved is None or not self._improved.growing:
            return latest
        return latest * min(1.0, iteration / (self._improved.growing * self.spec.iterations))

    def at(self, expert: int, epoch: float) -> Tensor:
        """`expert_at` of these paths."""
        return expert_at(self.experts, expert, epoch, self.pace)


def inner_decay(spec: MatchingSpec) -> float:
    """Decay of the inner run's own average, whose gap looks back as far as an expert's heading: tau = m / (1 - m) inner steps."""
    tau = spec.inner_steps * HEADING / spec.expert_epochs
    return tau / (1.0 + tau)
