"""The lag of a moving average against the average itself, summed up step by step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddcore.lag import epochs_to_record, mean_time, read_time

DECAYS = st.floats(0.01, 0.9999)


def averaged(values, decay):
    """The moving averages of `values`, by its recursion."""
    averages = values[:1]
    for value in values[1:]:
        averages.append(decay * averages[-1] + (1 - decay) * value)
    return averages


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.9, 0.999])
def test_the_mean_time_is_where_the_average_of_a_straight_line_stands(decay):
    line = [float(step) for step in range(200)]
    for step, place in enumerate(averaged(line, decay)):
        assert mean_time(step, decay) == pytest.approx(place, rel=1e-9, abs=1e-9)


@given(st.floats(0.0, 1e6), DECAYS)
def test_reading_at_the_read_time_undoes_the_lag(steps, decay):
    assert mean_time(read_time(steps, decay), decay) == pytest.approx(steps, rel=1e-10, abs=1e-8)


@given(st.floats(0.0, 1e6), DECAYS)
def test_an_average_is_read_later_but_by_no_more_than_its_memory(steps, decay):
    assert steps <= read_time(steps, decay) <= steps + decay / (1 - decay)
    assert mean_time(steps, decay) <= steps
    assert read_time(0.0, decay) == pytest.approx(0.0, abs=1e-12 / (1 - decay))


@given(st.integers(1, 30), DECAYS, st.integers(1, 300))
def test_as_few_whole_epochs_are_recorded_as_reach_the_last_that_is_read(epochs, decay, epoch_steps):
    recorded = epochs_to_record(epochs, decay, epoch_steps)
    rounding = 1e-6 * epoch_steps
    assert mean_time(recorded * epoch_steps, decay) >= epochs * epoch_steps - rounding
    assert mean_time((recorded - 1) * epoch_steps, decay) < epochs * epoch_steps + rounding
    assert epochs_to_record(epochs, None, epoch_steps) == epochs
