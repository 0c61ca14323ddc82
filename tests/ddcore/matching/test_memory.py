"""The memory planner: its figures against the allocator's, its choices, its refusals."""

import pytest
import torch

from ddcore.errors import DdcoreError
from ddcore.matching import memory
from ddcore.matching.adjoint import Inner, Memory, pull_back, run_inner
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.blocks.native import native_blocks
from ddcore.matching.cores import Core
from ddcore.matching.explicit import ExplicitConvNet
from ddcore.matching.memory import SHARE, Need, free_bytes, measure, peak_bytes, plan_memory, sparse_bytes
from ddcore.networks.flat import build_student
from ddcore.specs import StudentSpec
from ddcore.task import generator

CPU = torch.device("cpu")


def inner_of(core="eager", steps=6, momentum=0.0, layered=False, batch=16):
    network = build_student(StudentSpec(depth=2, width=16), (3, 16, 16), 40)
    cores = {
        "generic": lambda: Core(network),
        "eager": lambda: ExplicitConvNet(network, EagerBlocks()),
        "native": lambda: ExplicitConvNet(network, native_blocks() or EagerBlocks()),
    }
    make = generator(0, "memory")
    images, targets = torch.randn(32, 3, 16, 16, generator=make), torch.randn(32, 40, generator=make)
    rate = torch.full((len(network.layer_sizes),), 0.1) if layered else torch.tensor(0.1)
    batches = [torch.randperm(32, generator=make)[:batch] for _ in range(steps)]
    return Inner(cores[core](), images, targets, rate, batches, momentum), network.init(make)


def allocated(work):
    """The peak of the allocator's own record of what `work` takes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    now = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize("core", ["generic", "eager", "native"])
@pytest.mark.parametrize("kept", [Memory(0), Memory(3), Memory(6), Memory(0, "sparse")], ids=str)
def test_the_plans_figure_is_what_the_allocator_gives(core, kept):
    inner, start = inner_of(core)
    need = measure(inner, start)

    def work():
        run = run_inner(inner, start, kept)
        pull_back(run, run.end)

    work()
    thetas = sparse_bytes(need, inner, 6) if kept.thetas == "sparse" else 6 * need.theta
    planned, taken = need.step(16) + thetas + kept.cached * need.kept(16), allocated(work)
    assert taken <= 1.1 * planned
    assert planned <= 1.5 * taken


def test_the_counter_sees_what_the_allocator_sees():
    def work():
        held = [torch.ones(1000) for _ in range(5)]
        del held[0]
        torch.ones(3000)

    assert peak_bytes(work, CPU) == 4 * 7000


@pytest.mark.parametrize("core", ["generic", "eager", "native"])
def test_without_passes_a_step_more_costs_one_flat_vector(core):
    """No graph, and no velocity, outlives a step."""

    def taken(steps):
        inner, start = inner_of(core, steps, momentum=0.9)

        def work():
            run = run_inner(inner, start)
            found = pull_back(run, run.end - start)
            tensors = (run.end, found.images, found.targets, found.rate, found.start)
            assert all(t.grad_fn is None for t in tensors)

        work()
        return allocated(work), start.nbytes

    (few, size), (many, _) = taken(4), taken(24)
    assert 0.95 * size < (many - few) / 20 < 1.05 * size


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("layered", [False, True], ids=["one rate", "layers' rates"])
@pytest.mark.parametrize("core", ["generic", "eager", "native"])
def test_what_is_kept_changes_no_bit(core, momentum, layered):
    inner, start = inner_of(core, 7, momentum, layered)
    results = []
    for kept in (Memory(), Memory(3), Memory(7), Memory(0, "host"), Memory(0, "sparse")):
        run = run_inner(inner, start, kept)
        found = pull_back(run, run.end - start)
        assert not run.thetas
        assert not run.kept
        results.append((run.end, found.images, found.targets, found.rate, found.start))
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others, results[0], strict=True))


def need_of(step, theta, kept):
    return Need(theta, step, 0, kept, 0)


def test_plans_from_plenty_to_nothing():
    inner, _ = inner_of(steps=16)
    need = need_of(step=1000, theta=100, kept=500)

    def plan(room, device=CPU, host=0):
        return plan_memory(need, inner, int(room / SHARE) + 1, device, int(host / SHARE) + 1)

    assert plan(1000 + 16 * 100 + 16 * 500) == Memory(16)
    assert plan(1000 + 16 * 100 + 3 * 500 + 499) == Memory(3)
    assert plan(1000 + 16 * 100) == Memory(0)
    assert plan(1000 + 16 * 100 - 1) == Memory(0, "sparse")
    assert plan(1000 + 8 * 100) == Memory(0, "sparse")
    assert plan(1200, torch.device("cuda"), 1600) == Memory(0, "host")
    assert plan(1800, torch.device("cuda"), 1500) == Memory(0, "sparse")  # the host has no room for them either


def test_what_cannot_fit_is_refused_with_the_figure_and_the_largest_that_would():
    inner, _ = inner_of(steps=16)
    gib = 2**30
    with pytest.raises(DdcoreError) as caught:
        plan_memory(need_of(step=2 * gib, theta=gib, kept=gib), inner, 10 * gib, CPU, 0)
    error = caught.value
    assert error.code == "out_of_memory"
    assert "16 inner steps on batches of 16 need at least 10.00 GiB" in error.detail
    assert "10.00 GiB are free" in error.detail
    assert error.hint == "method.inner_steps of 9 or less at this batch size"  # 2 + 2 * 3 = 8 GiB, which is 80 %
    with pytest.raises(DdcoreError) as caught:
        plan_memory(need_of(step=800 * gib, theta=gib, kept=gib), inner, 4 * gib, CPU, 0)
    assert caught.value.hint == "a smaller student, or a machine with more memory"


@pytest.mark.parametrize("core", ["generic", "eager", "native"])
def test_the_batch_that_the_refusal_names_fits_and_a_larger_one_does_not(core):
    inner, start = inner_of(core, steps=9, batch=32)
    need = measure(inner, start)
    free = int((need.step(13) + sparse_bytes(need, inner, 9)) / SHARE) + 1
    with pytest.raises(DdcoreError) as caught:
        plan_memory(need, inner, free, CPU, 0)
    assert caught.value.hint.endswith("method.batch_size of 13 or less at this number of steps")
    assert plan_memory(need, inner_of(core, steps=9, batch=13)[0], free, CPU, 0) == Memory(0, "sparse")
    with pytest.raises(DdcoreError):
        plan_memory(need, inner_of(core, steps=9, batch=14)[0], free, CPU, 0)


@pytest.mark.parametrize("core", ["generic", "eager", "native"])
def test_a_batch_is_foreseen_from_a_part_of_it(core):
    inner, start = inner_of(core, steps=1, batch=32)
    foreseen = measure(inner, start).step(32)

    def work():
        run = run_inner(inner, start)
        pull_back(run, run.end)

    work()
    assert 0.95 * allocated(work) <= foreseen <= 1.2 * allocated(work)


def test_a_plan_by_measure_fits_what_it_was_given():
    inner, start = inner_of("eager", steps=9)
    need = measure(inner, start)
    free = int((need.step(16) + 9 * need.theta + 4 * need.kept(16)) / SHARE)
    planned = plan_memory(need, inner, free, CPU, 0)
    assert planned.cached in (3, 4)

    def work():
        run = run_inner(inner, start, planned)
        pull_back(run, run.end)

    assert allocated(work) <= free


@pytest.mark.parametrize("version", [2, 1])
def test_a_containers_limit_holds_but_for_cached_files(tmp_path, monkeypatch, version):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    1000 kB\nHugePages_Total:       0\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    _, limit, used = memory.CGROUPS[2 - version]
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path, limit, used),))
    assert free_bytes(CPU) == 1000 * 1024  # no group
    (tmp_path / used).write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\nactive_file 40000\ninactive_file 60000\n")
    (tmp_path / limit).write_text("800000\n")
    assert free_bytes(CPU) == 200_000
    (tmp_path / limit).write_text("600000\n")
    assert free_bytes(CPU) == 0
    (tmp_path / limit).write_text("max\n")
    assert free_bytes(CPU) == 1000 * 1024
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "absent")
    assert 2**28 < free_bytes(CPU) < 2**50  # half of this machine's
