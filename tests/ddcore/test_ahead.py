"""How many pieces of work a device has before it, on one that finishes them when it is told to."""

from types import SimpleNamespace

import pytest
import torch

from ddcore import ahead
from ddcore.ahead import Ahead
from ddcore.errors import Stopped

CUDA = torch.device("cuda")


class Device:
    """Stands for torch.cuda: events are done in the order in which they were recorded, as many as `finished` says."""

    def __init__(self):
        self.recorded = self.finished = 0

    def Event(self):
        event = SimpleNamespace(number=None)

        def record(stream):
            assert stream == "the stream of cuda"
            self.recorded += 1
            event.number = self.recorded

        event.record, event.query = record, lambda: event.number <= self.finished
        return event

    def current_stream(self, device):
        return f"the stream of {device}"


@pytest.fixture
def device(monkeypatch):
    made = Device()
    monkeypatch.setattr(ahead, "cuda", made)
    monkeypatch.setattr(ahead, "POLL", 0.0)
    return made


def test_the_host_waits_for_the_oldest_piece_only_and_only_when_too_many_are_queued(device):
    queue, waited = Ahead(CUDA, 2), []

    def pulse():
        waited.append((device.recorded, device.finished))
        device.finished += len(waited) % 2  # not at the first look at each

    for _ in range(5):
        queue.mark(pulse)
    assert device.recorded == 5
    assert device.finished == 3  # two are still queued: nobody waited for them
    assert waited == [(3, 0), (4, 1), (4, 1), (5, 2), (5, 2)]


def test_while_it_waits_it_can_be_stopped_and_forgets_nothing(device):
    queue = Ahead(CUDA, 1)

    def stop():
        raise Stopped

    queue.mark(stop)
    with pytest.raises(Stopped):
        queue.mark(stop)
    device.finished = 2
    queue.mark(stop)
    with pytest.raises(Stopped):
        queue.mark(stop)


def test_on_a_cpu_there_is_nothing_to_wait_for(device):
    Ahead(torch.device("cpu"), 0).mark(pytest.fail)
    assert device.recorded == 0
