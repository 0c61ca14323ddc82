import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.settings import Settings
from tests.worker.service import gone, until
from worker.exits import Exit
from worker.launcher import Launcher


@pytest.fixture
def launcher(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    monkeypatch.setenv("POTSTILL_HOME", str(settings.home))
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_one_template_serves_many_runners_and_says_how_each_ends(launcher: Launcher, settings: Settings) -> None:
    for _ in range(2):
        launcher.start("step_unknown", 1)
        assert until(lambda: launcher.poll() is not None, 60) is True
        assert (launcher.poll(), launcher.last_words()) == (Exit.LOST, "")
    template = launcher._template
    assert template is not None

    (settings.home / "potstill.db").unlink()  # from now on a runner waits for its database
    launcher.start("step_unknown", 1)
    runner = until(lambda: launcher.poll() is None and launcher.pid, 60)
    assert launcher.silence() < 60
    until(lambda: handles(runner, signal.SIGABRT), 10)
    launcher.signal(signal.SIGABRT)
    assert until(launcher.poll, 10) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in launcher.last_words()
    assert launcher._template is template

    launcher.start("step_unknown", 1)
    runner = until(lambda: launcher.poll() is None and launcher.pid, 60)
    os.kill(template.pid, signal.SIGKILL)
    assert until(launcher.poll, 10) == -signal.SIGKILL
    until(lambda: gone(runner), 5)
    launcher.signal(signal.SIGTERM)  # nobody is there: nothing happens


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_template_that_cannot_start_is_told_from_a_runner_that_crashed(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    launcher.warm()
    for _ in range(3):
        launcher.start("step_unknown", 1)
        assert (until(launcher.poll, 10), launcher.pid) == (3, None)
        launcher.signal(signal.SIGTERM)


def handles(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
