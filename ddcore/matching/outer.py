"""The outer loss of an inner run: the terms that a method asks for, their sum, and where their derivatives enter."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddcore.experts.sgd import Regression
from ddcore.matching.adjoint import InnerRun
from ddcore.matching.cores import Core, inner_loss
from ddcore.matching.losses import cosine_distance, joined_layers, layer_distance, normalised_distance
from ddcore.specs import ImprovedSpec, MatchingSpec


@dataclass(frozen=True)
class Outer:
    """terms: [k], unweighted, in the order of `OuterLoss.names`, the distance first; total: []; end, average: its derivatives [P]."""

    total: Tensor
    terms: Tensor
    end: Tensor
    average: Tensor | None


class OuterLoss:
    """L = D + w_d (1 - cos(theta_N - theta_0, phi - theta_0)) + w_g (1 - cos(theta_N - bar_N, heading)) + w_f F.

    D: `normalised_distance` or `layer_distance` to the goal phi. bar_N is the inner run's moving average: for an average of decay m,
    theta - bar = m / (1 - m) times its last step, so the gap to it says where the run is heading, and the third term compares that with
    where the expert was heading at the goal. F = l(theta_N) / l(theta_0) on a batch of real images, l the squared error from the
    teacher's targets, or from the expert's outputs at the goal: no label is read. MKDT's own loss is D alone.
    """

    def __init__(self, core: Core, spec: MatchingSpec, real: Regression | None = None) -> None:
        self.core, self.real = core, real
        self.spec = spec if isinstance(spec, ImprovedSpec) else ImprovedSpec()
        weights = {"displacement": self.spec.displacement, "gap": self.spec.gap, "functional": self.spec.functional}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.layers = joined_layers(core.network.layer_sizes) if self.spec.normalise == "layers" else []
        if self.spec.functional and real is None:
            raise ValueError("the functional term reads real images, and none were given")

    @property
    def names(self) -> list[str]:
        return ["distance", *self.weights]

    def __call__(self, run: InnerRun, start: Tensor, goal: Tensor, heading: Tensor | None = None, rows: Tensor | None = None) -> Outer:
        """start, goal, heading: of the window, [P]; rows: indices [b] of real images. The last two where their terms are in use."""
        terms, average = [], None
        if self.layers:
            distance, gradient = layer_distance(run.end, start, goal, self.layers)
        else:
            distance, gradient = normalised_distance(run.end, start, goal)
        terms.append(distance)
        if weight := self.weights.get("displacement"):
            term, found = cosine_distance(run.end - start, goal - start)
            terms.append(term)
            gradient = torch.add(gradient, found, alpha=weight)
        if (weight := self.weights.get("gap")) and heading is not None:
            term, found = cosine_distance(run.end - run.average, heading)
            terms.append(term)
            gradient, average = torch.add(gradient, found, alpha=weight), found * -weight
        if (weight := self.weights.get("functional")) and rows is not None:
            term, found = self._functional(run.end, start, goal, rows)
            terms.append(term)
            gradient = torch.add(gradient, found, alpha=weight)
        total = terms[0]
        for term, weight in zip(terms[1:], self.weights.values(), strict=True):
            total = total + weight * term
        return Outer(total, torch.stack(terms), gradient, average)

    def _functional(self, end: Tensor, start: Tensor, goal: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        assert self.real is not None
        network = self.core.network
        x, y = self.real.images.batch(rows), self.real.targets.index_select(0, rows)
        with torch.no_grad():
            if self.spec.functional_goal == "expert":
                y = network(goal, x)
            before = inner_loss(network, start, x, y)
        found = self.core.gradient(end, x, y)
        return found.loss / before, found.gradient / before
