"""Windows: what is drawn, in which order, and where in a recorded path it is read."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddcore.lag import epochs_to_record, mean_time
from ddcore.matching.adjoint import batches_of
from ddcore.matching.windows import Pace, Windows, expert_at, inner_decay
from ddcore.specs import MKDTPlusSpec, MKDTSpec
from ddcore.task import generator

FIELDS = {"iterations": 100, "expert_epochs": 2, "max_start_epoch": 3}


def paths(rows):
    """A stand-in for recorded trajectories [experts, snapshots, P]."""
    return SimpleNamespace(num_experts=len(rows), num_snapshots=len(rows[0]), row=lambda expert, snapshot: rows[expert][snapshot])


def curved(experts=3, snapshots=6):
    """Paths on which no two places are alike and no two moves: [expert, t, t^2]."""
    t = torch.arange(snapshots, dtype=torch.float64)
    return torch.stack([torch.stack([torch.full_like(t, expert), t, t * t], 1) for expert in range(experts)])


def between(path, time):
    """The path's place at a time, by the definition of a straight line between its snapshots."""
    before = min(math.floor(time), len(path) - 2)
    return (before + 1 - time) * path[before] + (time - before) * path[before + 1]


def drawn(spec, iterations=400, rows=None, pace=None):
    windows, random = Windows(paths(curved() if rows is None else rows), spec, pace), generator(0, "windows")
    return [windows.draw(iteration, random) for iteration in range(iterations)]


def test_mkdt_draws_an_expert_then_an_epoch_then_batches_as_it_always_did():
    """The golden order: with it, sets made before windows had other kinds are made again bit for bit."""
    rows, spec = curved(), MKDTSpec(**FIELDS)
    windows, ours, golden = Windows(paths(rows), spec), generator(7, "matching"), generator(7, "matching")
    for iteration in range(60):
        window = windows.draw(iteration, ours)
        batches = batches_of(9, 4, 3, ours)
        expert, epoch = int(torch.randint(3, (), generator=golden)), int(torch.randint(4, (), generator=golden))
        assert torch.equal(window.start, rows[expert, epoch])
        assert torch.equal(window.goal, rows[expert, epoch + 2])
        assert window.heading is None
        assert all(map(torch.equal, batches, batches_of(9, 4, 3, golden)))


def test_mkdt_plus_without_its_parts_draws_what_mkdt_draws():
    plain = drawn(MKDTSpec(**FIELDS), 50)
    other = drawn(MKDTPlusSpec(**FIELDS, continuous=False), 50)
    assert all(torch.equal(one.start, two.start) and torch.equal(one.goal, two.goal) for one, two in zip(plain, other, strict=True))


def test_continuous_windows_begin_anywhere_up_to_the_latest_start_and_follow_the_straight_line():
    rows = curved()
    windows = drawn(MKDTPlusSpec(**FIELDS, gap=1.0))
    times = [float(window.start[1]) for window in windows]  # the second number is the time itself
    for window, time in zip(windows, times, strict=True):
        path = rows[int(window.start[0])]
        assert torch.allclose(window.start, between(path, time), atol=1e-9)
        assert torch.allclose(window.goal, between(path, time + 2), atol=1e-9)
        assert torch.allclose(window.heading, between(path, time + 2) - between(path, time + 1), atol=1e-9)
    assert {int(window.start[0]) for window in windows} == {0, 1, 2}
    counts = torch.histc(torch.tensor(times), 6, 0.0, 3.0)
    assert counts.sum() == len(times)  # none is outside
    assert counts.min() > 40  # each sixth expects 67, give or take 7
    assert sum(abs(time - round(time)) > 0.01 for time in times) > 350


@pytest.mark.parametrize(("epochs", "before"), [(1, 1.0), (4, 1.0)])
def test_a_heading_is_the_move_of_the_last_epoch_before_the_goal(epochs, before):
    spec = MKDTPlusSpec(iterations=9, expert_epochs=epochs, max_start_epoch=0, gap=0.5)
    (window,) = drawn(spec, 1)
    path = curved()[int(window.start[0])]
    assert torch.allclose(window.heading, between(path, epochs) - between(path, epochs - before), atol=1e-12)
    assert drawn(spec.model_copy(update={"gap": 0.0}), 1)[0].heading is None


def test_a_part_of_the_windows_begins_where_the_set_itself_leads_from_the_first_snapshot():
    rows = curved()
    for window in (windows := drawn(MKDTPlusSpec(**FIELDS, inner_steps=30, own_starts=0.25, continuous=False), 800)):
        path, time = rows[int(window.goal[0])], int(window.goal[1]) - 2
        assert torch.equal(window.goal, path[time + 2])
        own = torch.equal(window.start, path[0])
        assert own or torch.equal(window.start, path[time])
        assert window.run_up == (15 * time if own and window.run_up else 0)  # thirty steps are two epochs
    share = sum(window.run_up > 0 for window in windows) / 800
    assert share == pytest.approx(0.25 * 3 / 4, abs=0.05)  # of those that begin at 0 nothing shows
    assert {window.run_up for window in windows} == {0, 15, 30, 45}
    assert all(window.run_up == 0 for window in drawn(MKDTPlusSpec(**FIELDS)))


@pytest.mark.parametrize(("steps", "epochs", "tau"), [(40, 2, 20.0), (30, 1, 30.0)])
def test_the_inner_average_looks_back_over_the_inner_steps_of_an_epoch(steps, epochs, tau):
    decay = inner_decay(MKDTPlusSpec(inner_steps=steps, expert_epochs=epochs))
    assert decay / (1 - decay) == pytest.approx(tau)


def test_a_growing_window_begins_at_zero_and_reaches_its_maximum_in_equal_steps():
    windows = Windows(paths(curved()), MKDTPlusSpec(**FIELDS, growing=0.4))
    assert [windows.latest_start(i) for i in (0, 10, 20, 40, 70, 99)] == pytest.approx([0.0, 0.75, 1.5, 3.0, 3.0, 3.0])
    assert [Windows(paths(curved()), MKDTPlusSpec(**FIELDS)).latest_start(i) for i in (0, 99)] == [3.0, 3.0]


@pytest.mark.parametrize("continuous", [False, True])
def test_no_window_begins_later_than_the_growth_allows(continuous):
    spec = MKDTPlusSpec(**FIELDS | {"iterations": 400}, growing=0.8, continuous=continuous)
    starts = [float(window.start[1]) for window in drawn(spec)]
    assert all(start <= 3.0 * min(1.0, i / 320) + 1e-12 for i, start in enumerate(starts))
    assert max(starts[320:]) > 2.9
    assert starts[0] == 0.0
    assert continuous or set(starts) == {0.0, 1.0, 2.0, 3.0}


def recorded(line, decay, epoch_steps, epochs):
    """Snapshots of the moving average of a path given step by step, one an epoch."""
    average, snapshots = line(0), [line(0)]
    for step in range(1, epochs * epoch_steps + 1):
        average = decay * average + (1 - decay) * line(step)
        if step % epoch_steps == 0:
            snapshots.append(average)
    return torch.stack(snapshots)


@pytest.mark.parametrize(("decay", "epoch_steps"), [(0.5, 1), (0.9, 6), (0.99, 6), (0.95, 20), (0.9, 200)])
def test_where_a_path_is_straight_its_average_read_by_the_lag_is_the_path_itself(decay, epoch_steps):
    """At every time, between snapshots too, where the average itself does not move evenly."""
    begin, move = torch.randn(2, 5, dtype=torch.float64, generator=generator(0, "line"))
    spec = MKDTPlusSpec(**FIELDS)
    last = epochs_to_record(5, decay, epoch_steps)
    rows = recorded(lambda step: begin + step * move, decay, epoch_steps, last)
    windows = Windows(paths([rows]), spec, Pace(decay, epoch_steps))
    for epoch in torch.linspace(0, 5, 41).tolist():
        assert torch.allclose(windows.at(0, epoch), begin + epoch * epoch_steps * move, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(Windows(paths([rows]), spec).at(0, 2.0), begin + 2 * epoch_steps * move, rtol=1e-2)


def test_the_times_that_snapshots_stand_for_are_read_as_the_snapshots_themselves():
    rows, pace = curved(1, 8)[0], Pace(0.9, 6)
    windows = Windows(paths([rows]), MKDTPlusSpec(**FIELDS | {"expert_epochs": 1}), pace)
    for snapshot in range(8):
        time = mean_time(6 * snapshot, 0.9) / 6
        assert torch.allclose(windows.at(0, time), rows[snapshot], atol=1e-6)


@given(st.integers(0, 4), st.integers(1, 4), st.floats(0.05, 0.999), st.integers(1, 50), st.booleans())
def test_no_window_leaves_a_record_of_as_many_epochs_as_are_recorded_and_one_less_is_refused(start, span, decay, epoch_steps, continuous):
    spec = MKDTPlusSpec(iterations=5, expert_epochs=span, max_start_epoch=start, continuous=continuous, gap=1.0)
    epochs, pace = epochs_to_record(start + span, decay, epoch_steps), Pace(decay, epoch_steps)
    rows = torch.arange(epochs + 1.0, dtype=torch.float64).view(1, -1, 1)
    windows = Windows(paths(rows), spec, pace)
    assert float(windows.at(0, start + span)) <= epochs
    for iteration in range(5):
        window = windows.draw(iteration, generator(iteration, "any"))
        assert 0 <= float(window.start) < float(window.goal) <= epochs
    with pytest.raises(ValueError, match="windows end at epoch"):
        Windows(paths(rows[:, :-1]), spec, pace)


def test_after_its_last_snapshot_a_path_stands_still():
    """Where an epoch is no whole number of inner steps, a run of whole steps ends a little later than the last snapshot."""
    rows = curved()
    for epoch in (5.0, 5.0 + 1 / 7, 6.0):
        assert torch.equal(expert_at(paths(rows), 1, epoch, None), rows[1, 5])
    pace = Pace(0.9, 20)
    assert torch.equal(expert_at(paths(rows), 1, pace.stands_for(5) + 0.1, pace), rows[1, 5])


def test_a_record_of_plain_paths_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match=r"windows end at epoch 5\.00 of the recorded paths, which have 4"):
        Windows(paths(curved(1, 5)), MKDTSpec(**FIELDS))
