"""An expert in training: momentum SGD on flat parameters, in place; a step neither waits for the device nor allocates for the update."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddcore.ahead import Ahead
from ddcore.data.augment import random_views
from ddcore.data.images import Images, Normaliser, PixelRows
from ddcore.matching.cores import Core
from ddcore.matching.explicit import ExplicitConvNet
from ddcore.matching.graphs import Capture, Captured, CudaCapture, Replayed
from ddcore.networks.flat import FlatNetwork
from ddcore.specs import AugmentSpec, ExpertsSpec
from ddcore.task import generator

SMALL = 1 << 21  # numbers in a batch's largest feature map below which a GPU has room for other experts; a guess, not measured
QUEUED = 16  # steps of a lane that a CUDA device may have before it
MOST = 8  # experts in flight; each takes two streams, to run on and to capture on, of the 32 that torch hands out in turn


@dataclass(frozen=True)
class Regression:
    """What experts learn, all on one device: images, their targets [n, d]; and how random views of images are taken, if they are."""

    images: PixelRows
    targets: Tensor
    normaliser: Normaliser
    augment: AugmentSpec | None

    @staticmethod
    def of(data: Images, targets: Tensor, normaliser: Normaliser, core: Core, augment: AugmentSpec | None) -> "Regression":
        """On the device of `normaliser`, in the memory format that `core` reads without a copy."""
        device = normaliser.shift.device
        memory_format = core.blocks.memory_format if isinstance(core, ExplicitConvNet) else torch.contiguous_format
        return Regression(PixelRows(data.images.to(device), normaliser, memory_format), targets.to(device), normaliser, augment)

    def batch(self, rows: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Normalised images float32 [b, c, h, w], or views of them, and the targets [b, d] of the images as they are."""
        targets = self.targets.index_select(0, rows)
        if self.augment is None:
            return self.images.batch(rows), targets
        return self.normaliser(random_views(self.images.pixels(rows), self.augment, random)), targets


@dataclass
class Expert:
    """One expert in flight; its tensors are changed in place, so what is kept of them is cloned.

    average: the moving average of theta, or theta itself. loss_sum: [] over the images of the epoch so far. snapshots: on the CPU.
    step: steps of the epoch so far; began: the state of `random` when the epoch began.
    """

    theta: Tensor
    velocity: Tensor
    average: Tensor
    random: torch.Generator
    loss_sum: Tensor
    snapshots: list[Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    step: int = 0
    began: Tensor | None = None

    @staticmethod
    def begin(network: FlatNetwork, spec: ExpertsSpec, seed: int, index: int, device: torch.device, same_start: bool = False) -> "Expert":
        """Expert `index` of the whole run: its stream of randomness does not depend on how experts are split into shards."""
        random = generator(seed, "expert", index)
        start = network.init(generator(seed, "start") if same_start else random)  # the one before its orders are drawn
        theta = start.to(device, copy=True)
        average = theta if spec.ema is None else theta.clone()
        return Expert(theta, torch.zeros_like(theta), average, random, torch.zeros((), device=device), [start])

    @property
    def moving(self) -> list[Tensor]:
        """All that a step changes, but for the generator."""
        return [self.theta, self.velocity, self.average, self.loss_sum]

    def state(self) -> dict[str, Tensor]:
        """The tensors that it takes to go on from here, beside snapshots, losses and step."""
        began = {} if self.began is None else {"began": self.began}
        average = {} if self.average is self.theta else {"average": self.average}
        own = {"theta": self.theta, "velocity": self.velocity, "loss_sum": self.loss_sum, "random": self.random.get_state()}
        return own | average | began

    @staticmethod
    def restore(state: dict[str, Tensor], snapshots: list[Tensor], losses: list[float], step: int, device: torch.device) -> "Expert":
        """Where `state` was taken: `step` steps after the last of the epochs that `snapshots` and `losses` tell of."""
        random = torch.Generator()
        random.set_state(state["random"])
        theta, velocity, loss_sum = (state[name].to(device) for name in ("theta", "velocity", "loss_sum"))
        average = state["average"].to(device) if "average" in state else theta
        return Expert(theta, velocity, average, random, loss_sum, snapshots, losses, step, state.get("began"))

    def order(self, count: int) -> Tensor:
        """The order of `count` images in this epoch, [count]; the same again if the epoch is under way."""
        if self.began is None:
            self.began = self.random.get_state()
            return torch.randperm(count, generator=self.random)
        again = torch.Generator()
        again.set_state(self.began)
        return torch.randperm(count, generator=again)

    def end_epoch(self, mean_loss: float) -> None:
        self.step, self.began = 0, None
        self.losses.append(mean_loss)
        self.snapshots.append(self.average.to("cpu", copy=True))
        self.loss_sum.zero_()


def start_of(network: FlatNetwork, seed: int, index: int, same_start: bool) -> Tensor:
    """Where an expert begins, [P] on the CPU: its own initialisation, or one for all."""
    return network.init(generator(seed, "start") if same_start else generator(seed, "expert", index))


class Lane:
    """Where one expert trains.

    capture: how a step is made a graph that is replayed, if it is; the expert is as before afterwards. Random views are drawn on the
    CPU, so steps with them are not.
    """

    def __init__(self, core: Core, expert: Expert, spec: ExpertsSpec, data: Regression, capture: Capture | None = None) -> None:
        self.core, self.expert, self.spec, self.data = core, expert, spec, data
        self._replayed: Replayed | None = None
        if capture is not None and data.augment is None:
            self._replayed = Replayed(self._step, expert.theta.device, capture=undone(capture, expert.moving))

    def begin_epoch(self) -> None:
        """Called before the first step of an epoch."""

    def step(self, rows: Tensor) -> None:
        """One step of SGD on the images `rows` [b] (on the device)."""
        (self._replayed or self._step)(rows)

    def end_epoch(self) -> None:
        """Called after the last step of an epoch; then the expert may be read."""

    def close(self) -> None:
        """Let go of the graphs and their memory at once: they know the lane, so it would wait for the garbage collector otherwise."""
        self._replayed = None

    def _step(self, rows: Tensor) -> tuple[Tensor, ...]:
        expert, spec = self.expert, self.spec
        found = self.core.gradient(expert.theta, *self.data.batch(rows, expert.random))
        torch.add(found.gradient, expert.velocity, alpha=spec.momentum, out=expert.velocity).add_(expert.theta, alpha=spec.weight_decay)
        expert.theta.add_(expert.velocity, alpha=-spec.lr)
        if spec.ema is not None:
            expert.average.lerp_(expert.theta, 1.0 - spec.ema)
        expert.loss_sum.add_(found.loss, alpha=len(rows))
        return ()


class CudaLane(Lane):
    """A lane with a stream of its own, beside which others run, and steps replayed from graphs.

    A small student's step is many short kernels: from a graph they follow each other without the host, and those of several experts
    overlap.
    """

    def __init__(self, core: Core, expert: Expert, spec: ExpertsSpec, data: Regression) -> None:
        super().__init__(core, expert, spec, data, CudaCapture())
        self.stream, self._ahead = torch.cuda.Stream(expert.theta.device), Ahead(expert.theta.device, QUEUED)

    def begin_epoch(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))

    def step(self, rows: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            super().step(rows)
            self._ahead.mark()

    def end_epoch(self) -> None:
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)

    def close(self) -> None:
        self.stream.synchronize()  # after an epoch that was broken off, steps may still be running on the memory of the graphs
        super().close()


def undone(capture: Capture, moving: list[Tensor]) -> Capture:
    """`capture` of work that changes the tensors `moving` in place: they are as before afterwards, also where it fails."""

    def captured(work: Callable[[], tuple[Tensor, ...]]) -> Captured:
        before = [tensor.clone() for tensor in moving]
        try:
            return capture(work)
        finally:
            for tensor, kept in zip(moving, before, strict=True):
                tensor.copy_(kept)

    return captured


def in_flight(network: FlatNetwork, batch_size: int, device: torch.device) -> int:
    """Experts to train side by side: on a CPU one, whose threads are busy with it; on a GPU more if a student leaves it idle."""
    small = network.largest_map is not None and network.largest_map * batch_size <= SMALL
    return MOST if device.type == "cuda" and small else 1
