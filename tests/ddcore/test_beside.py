"""Work in a thread of its own: what it returns or raises, and a step that stops without it."""

import threading

import pytest

from ddcore import beside as module
from ddcore.beside import beside
from ddcore.errors import Stopped


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "POLL", 0.001)


def test_what_it_returns_comes_back_and_meanwhile_somebody_asks():
    enough, asked = threading.Event(), []

    def meanwhile():
        asked.append(threading.current_thread())
        if len(asked) == 3:
            enough.set()

    assert beside(lambda: (enough.wait(60), threading.current_thread()), meanwhile)[0]
    assert set(asked) == {threading.main_thread()}


def test_what_it_raises_is_raised_here():
    def fail():
        raise ValueError("no route")

    with pytest.raises(ValueError, match="no route"):
        beside(fail, lambda: None)


def test_who_stops_does_not_wait_for_it():
    never = threading.Event()

    def stop():
        raise Stopped

    try:
        with pytest.raises(Stopped):
            beside(never.wait, stop)
    finally:
        never.set()
