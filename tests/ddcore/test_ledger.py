"""A ledger answers each part once, and an interrupted part goes on from what it held."""

import pytest
import torch

from ddcore.errors import Stopped
from ddcore.events import Reporter
from ddcore.ledger import Ledger


def ledger(work, layout="x 1", seconds=0.0):
    return Ledger(work, layout, Reporter(checkpoint_seconds=seconds))


def never():
    raise AssertionError("it was answered before")


def test_answers_come_back_in_their_form(tmp_path):
    answers = [1.5, torch.arange(3.0), {"a": [1, None]}, (torch.ones(2), [0.1, None]), None]
    first = ledger(tmp_path)
    for answer in answers:
        first.once(lambda answer=answer: answer)
    again = ledger(tmp_path)
    assert again.ahead() == 5
    found = [again.once(never) for _ in answers]
    assert (found[0], found[2], found[4]) == (1.5, {"a": [1, None]}, None)
    assert torch.equal(found[1], torch.arange(3.0))
    assert torch.equal(found[3][0], torch.ones(2))
    assert found[3][1] == [0.1, None]
    assert again.once(lambda: "later") == "later"
    assert ledger(tmp_path, "x 2").ahead() == 0, "another layout's"


def count_to(most, book, stop_at=None):
    total = torch.zeros(())
    if found := book.resume():
        total = found[0]["total"]
    book.hold(lambda: ({"total": total}, {}))
    steps = 0
    while total < most:
        book.offer()
        if total == stop_at:
            raise Stopped
        total, steps = total + 1, steps + 1
    return [float(total), steps]


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_a_part_that_was_stopped_goes_on_and_the_next_begins_with_nothing(tmp_path, seconds):
    book = ledger(tmp_path, seconds=seconds)
    assert book.once(lambda: count_to(3, book)) == [3.0, 3]
    with pytest.raises(Stopped):
        book.once(lambda: count_to(9, book, stop_at=5))
    again = ledger(tmp_path, seconds=seconds)
    assert again.once(never) == [3.0, 3]
    with pytest.raises(Stopped):
        again.once(lambda: count_to(9, again, stop_at=5))
    last = ledger(tmp_path, seconds=seconds)
    assert last.once(never) == [3.0, 3]
    assert last.once(lambda: count_to(9, last)) == [9.0, 4]
    assert last.once(lambda: count_to(2, last)) == [2.0, 2]


def test_what_was_held_is_not_lost_by_a_stop_before_it_is_asked_for(tmp_path):
    book = ledger(tmp_path)
    with pytest.raises(Stopped):
        book.once(lambda: count_to(9, book, stop_at=5))

    def stop():
        raise Stopped

    again = ledger(tmp_path)
    with pytest.raises(Stopped):
        again.once(stop)
    last = ledger(tmp_path)
    assert last.once(lambda: count_to(9, last)) == [9.0, 4]
