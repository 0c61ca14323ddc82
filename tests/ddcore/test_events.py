"""Progress is throttled but never lost at the end; stopping is noticed at every call."""

import pytest

from ddcore.errors import CODES, DdcoreError, Stopped
from ddcore.events import Reporter


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_progress_is_sent_at_most_ten_times_a_second_and_always_at_the_end():
    heard, clock = [], Clock()
    reporter = Reporter(sink=heard.append, clock=clock)
    for done in range(1000):
        reporter.progress(done, 1000, "step")
        clock.now += 0.01
    reporter.progress(1000, 1000, "step", "nearly")
    reporter.progress(1000, 1000, "step", "whole")  # at the same moment
    assert 100 <= len(heard) <= 102
    assert heard[0]["done"] == 0
    assert heard[-1] == {"type": "progress", "done": 1000, "total": 1000, "unit": "step", "note": "whole"}


def test_slow_work_reports_every_call():
    heard, clock = [], Clock()
    reporter = Reporter(sink=heard.append, clock=clock)
    for done in range(5):
        reporter.progress(done, 9, "epoch")
        clock.now += 0.9
    assert [event["done"] for event in heard] == list(range(5))


def test_a_stop_is_noticed_even_where_nothing_would_be_sent():
    asked = []
    reporter = Reporter(should_stop=lambda: len(asked) == 3)
    for done in range(3):
        reporter.progress(done, 1000, "step")
        asked.append(done)
    with pytest.raises(Stopped):
        reporter.progress(3, 1000, "step")


def test_a_pulse_repeats_the_last_progress_once_a_second_and_notices_a_stop():
    heard, clock, asked = [], Clock(), []
    reporter = Reporter(sink=heard.append, clock=clock, should_stop=lambda: asked.append(clock.now) or clock.now > 103.8)
    reporter.progress(3, 9, "steps", "slow")
    for _ in range(35):
        clock.now += 0.1
        reporter.pulse()
    assert heard == [{"type": "progress", "done": 3, "total": 9, "unit": "steps", "note": "slow"}] * 4
    assert len(asked) == 4
    clock.now += 1.0
    with pytest.raises(Stopped):
        reporter.pulse()
    silent = Reporter(clock=clock, should_stop=lambda: True)  # nothing was said yet
    silent.pulse()
    clock.now += 1.0
    with pytest.raises(Stopped):
        silent.pulse()


def test_metrics_and_notes_are_plain_numbers_and_text():
    heard = []
    reporter = Reporter(sink=heard.append)
    reporter.metric("loss", 3, 1)
    reporter.note("careful")
    assert heard == [{"type": "metric", "name": "loss", "x": 3.0, "value": 1.0}, {"type": "note", "text": "careful"}]


def test_a_checkpoint_is_due_once_a_period_counted_from_the_start():
    clock = Clock()
    every = Reporter(clock=clock)
    seen = []
    for _ in range(20):
        clock.now += 25.0
        seen.append(every.checkpoint_due())
    assert [i for i, due in enumerate(seen) if due] == [2, 5, 8, 11, 14, 17]
    slow = Reporter(clock=clock, checkpoint_seconds=30.0)
    clock.now += 45.0
    assert slow.checkpoint_due()  # the first unit of work took longer than the period
    assert Reporter(clock=clock, checkpoint_seconds=0.0).checkpoint_due()


def test_only_listed_codes_are_raised():
    assert {DdcoreError(code, "x").code for code in CODES} == set(CODES)
    with pytest.raises(ValueError, match="unknown error code"):
        DdcoreError("oops", "x")
