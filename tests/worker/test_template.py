import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.worker.service import gone, until
from worker import template

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Callable[[bool], tuple[int, int]]]:
    """Fork a runner that does not listen to TERM and starts a process that does not either: the ids of both."""
    started: list[int] = []

    def begin(stays: bool) -> tuple[int, int]:
        note = tmp_path / "child"

        def work() -> int:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE)
            assert child.stdout is not None
            child.stdout.readline()
            note.with_suffix(".new").write_text(str(child.pid))
            note.with_suffix(".new").rename(note)
            while stays:
                signal.pause()
            return 7

        with tempfile.TemporaryFile() as log:
            runner = template._fork(work, log.fileno())
        until(note.exists, 60)
        started.extend((runner, int(note.read_text())))
        return runner, started[-1]

    yield begin
    for pid in started:
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)


def ended(runner: int) -> int:
    (code,) = until(lambda: None if (code := template._ended(runner)) is None else (code,), 20)
    return int(code)


def test_what_a_runner_started_does_not_outlive_it(family: Callable[[bool], tuple[int, int]]) -> None:
    runner, child = family(False)
    assert ended(runner) == 7
    until(lambda: gone(child), 5)


def test_whoever_ignores_the_request_to_stop_is_killed_with_all_its_own(family: Callable[[bool], tuple[int, int]]) -> None:
    runner, child = family(True)
    template._signal_group(runner, signal.SIGTERM)
    assert template._ended(runner) is None
    assert not gone(child)
    template._signal_group(runner, signal.SIGKILL)
    assert ended(runner) == -signal.SIGKILL
    until(lambda: gone(child), 5)
