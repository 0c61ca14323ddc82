"""What is around a CUDA graph: when one is made, what goes in and out of it, and what happens where there can be none."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from ddcore.matching import graphs
from ddcore.matching.adjoint import Inner, Memory, batches_of, pull_back, run_inner
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.explicit import ExplicitConvNet
from ddcore.matching.graphs import WARM_UP, CudaCapture, Replayed
from ddcore.matching.losses import normalised_distance
from ddcore.networks.flat import build_student
from ddcore.specs import StudentSpec
from ddcore.task import generator

CPU = torch.device("cpu")


class Recorder:
    """Stands for CUDA's capture: its replays read the memory the work was captured on, and write to where it left its results."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, work):
        self.captures += 1
        results = work()

        def replay():
            self.replays += 1
            for result, new in zip(results, work(), strict=True):
                result.copy_(new)

        return replay, results


def iteration_of(network):
    core = ExplicitConvNet(network, EagerBlocks())

    def iteration(start, goal, images, targets, rate, *batches):
        run = run_inner(Inner(core, images, targets, rate, batches, 0.5), start, Memory(1))
        loss, end = normalised_distance(run.end, start, goal)
        found = pull_back(run, end)
        return loss, found.images, found.targets, found.rate

    return iteration


def arguments_of(number, network, count=5, size=2, steps=4):
    make = generator(number, "graphs")
    images, targets = torch.randn(count, 1, 6, 6, generator=make), torch.randn(count, 3, generator=make)
    rate = torch.rand((), generator=make)
    return network.init(make), network.init(make), images, targets, rate, *batches_of(count, size, steps, make)


@pytest.fixture
def network():
    return build_student(StudentSpec(depth=1, width=4), (1, 6, 6), 3)


def test_replays_equal_the_plain_iteration_and_leave_what_they_were_given(network):
    """The last batch of each pass is smaller, and the pattern is the same every time: one graph serves all iterations."""
    iteration, recorder = iteration_of(network), Recorder()
    replayed = Replayed(iteration, CPU, capture=recorder)
    found = []
    worlds = [arguments_of(number, network) for number in range(4)]
    for arguments in worlds:
        assert [len(batch) for batch in arguments[5:]] == [2, 2, 1, 2]
        given = [t.clone() for t in arguments]
        found.append(replayed(*arguments))
        assert all(torch.equal(t, was) for t, was in zip(arguments, given, strict=True))
    # Compared only now: a later replay must not have written to an earlier result.
    for results, arguments in zip(found, worlds, strict=True):
        assert all(torch.equal(ours, plain) for ours, plain in zip(results, iteration(*arguments), strict=True))
    assert not torch.equal(found[0][1], found[1][1])
    assert (recorder.captures, recorder.replays) == (1, 4)


def test_other_shapes_and_dtypes_have_graphs_of_their_own(network):
    iteration, recorder = iteration_of(network), Recorder()
    replayed = Replayed(iteration, CPU, capture=recorder)
    small, large = arguments_of(0, network), arguments_of(1, network, count=7, size=3)
    double = [t.double() if t.is_floating_point() else t for t in small]
    for arguments in (small, large, double, large, small):
        assert all(torch.equal(ours, plain) for ours, plain in zip(replayed(*arguments), iteration(*arguments), strict=True))
    assert (recorder.captures, recorder.replays) == (3, 5)


def test_a_failed_capture_is_noted_once_and_work_goes_on(network):
    tries, notes = [], []

    def refuse(work):
        tries.append(work())
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")

    iteration = iteration_of(network)
    replayed = Replayed(iteration, CPU, notes.append, refuse)
    for number, size in ((0, 2), (1, 2), (2, 3)):
        arguments = arguments_of(number, network, size=size)
        assert all(torch.equal(ours, plain) for ours, plain in zip(replayed(*arguments), iteration(*arguments), strict=True))
    assert len(tries) == 1
    (text,) = notes
    assert text.endswith("operation not permitted when stream is capturing")


def test_an_error_of_the_work_itself_is_not_swallowed():
    def broken(x):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        Replayed(broken, CPU, capture=Recorder())(torch.ones(1))


def test_on_the_cpu_nothing_is_captured_or_copied():
    seen = []
    replayed = Replayed(lambda x: seen.append(x) or (x,), CPU)
    x = torch.ones(3)
    (out,) = replayed(x)
    assert seen[0] is x
    assert out is x


class FakeStream:
    def __init__(self):
        self.waited_for = []

    def wait_stream(self, other):
        self.waited_for.append(other)


class FakeCuda:
    """What a capture uses of torch.cuda, and where work runs: as torch does, a capture that cannot be ended leaves its stream current."""

    Stream, CUDAGraph = FakeStream, staticmethod(lambda: SimpleNamespace(replay=lambda: None))

    def __init__(self):
        self.now, self.pools, self.ends = FakeStream(), 0, True

    def graph_pool_handle(self):
        self.pools += 1
        return self.pools

    def current_stream(self):
        return self.now

    def set_stream(self, stream):
        self.now = stream

    @contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def graph(self, graph, pool, stream):
        before, self.now = self.now, stream
        yield
        if not self.ends:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.now = before


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(graphs, "cuda", FakeCuda())
    return graphs.cuda


def test_what_is_replayed_side_by_side_was_warmed_up_and_captured_on_streams_of_its_own(fake):
    """cuBLAS keeps a workspace for each stream: two captures on one stream would write to the same memory."""
    now, places = fake.now, []
    for capture in (CudaCapture(), CudaCapture()):
        seen = []
        for _ in range(2):
            capture(lambda seen=seen: seen.append(fake.now) or ())
        assert len(seen) == 2 * (WARM_UP + 1)
        (place,) = set(seen)
        places.append(place)
        assert place.waited_for == [now, now]
        assert fake.now is now
    assert len({now, *places}) == 3
    assert now.waited_for == [places[0], places[0], places[1], places[1]]
    assert fake.pools == 2


@pytest.mark.parametrize("where", ["warm-up", "capture", "end"])
def test_work_goes_on_where_it_was_after_a_capture_that_failed(fake, where):
    now, calls, notes = fake.now, [], []
    fails = {"warm-up": 1, "capture": WARM_UP + 1}.get(where)
    fake.ends = where != "end"

    def work(x):
        calls.append(fake.now)
        if len(calls) == fails:
            raise RuntimeError("too little memory")
        return (x + 1,)

    replayed = Replayed(work, CPU, notes.append, CudaCapture())
    assert replayed(torch.ones(())) == (2,)
    assert calls[-1] is now is fake.now
    assert calls[0] in now.waited_for  # the warm-up may have changed what work reads next
    assert len(notes) == 1
