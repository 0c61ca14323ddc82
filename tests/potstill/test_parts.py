import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from potstill.errors import PotstillError
from potstill.parts import MAX_RESTARTS, Part


def part(tmp_path: Path, code: str, grace: float = 5.0) -> Part:
    made = Part("worker", [sys.executable, "-c", code], dict(os.environ), tmp_path, tmp_path / "worker.log", grace)
    made.start()
    return made


def until(what: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def test_a_part_that_dies_is_started_again_but_not_for_ever(tmp_path: Path) -> None:
    broken = part(tmp_path, "print('no such table: jobs'); raise SystemExit(3)")
    notes: list[str] = []
    for _ in range(MAX_RESTARTS):
        until(lambda: broken.dead)
        broken.revive(notes.append)
    until(lambda: broken.dead)
    with pytest.raises(PotstillError, match=r"(?s)the worker ended with status 3.*no such table: jobs"):
        broken.revive(notes.append)
    assert len(notes) == MAX_RESTARTS


def test_stop_asks_first(tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').touch(), sys.exit()))\n"
        "pathlib.Path('up').touch()\ntime.sleep(60)"
    )
    polite = part(tmp_path, code)
    until((tmp_path / "up").exists)
    polite.stop()
    assert (tmp_path / "saved").exists()


def test_stop_kills_a_part_that_does_not_listen_with_all_of_its_group(tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path('new').write_text(str(child.pid)); pathlib.Path('new').rename('child')\n"
        "time.sleep(60)"
    )
    deaf = part(tmp_path, code, grace=0.2)
    until((tmp_path / "child").exists)
    child = psutil.Process(int((tmp_path / "child").read_text()))
    began = time.monotonic()
    deaf.stop()
    assert time.monotonic() - began < 5
    child.wait(5)


def test_parts_die_with_the_stack_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys, time\n"
        "from potstill.parts import Part\n"
        "here = pathlib.Path.cwd()\n"
        "child = Part('x', [sys.executable, '-c', 'import time; time.sleep(60)'], dict(os.environ), here, here / 'x.log')\n"
        "child.start()\n"
        "(here / 'new').write_text(str(child.process.pid)); (here / 'new').rename('child')\n"
        "time.sleep(60)"
    )
    parent = part(tmp_path, code)
    until((tmp_path / "child").exists)
    child = psutil.Process(int((tmp_path / "child").read_text()))
    assert parent.process is not None
    parent.process.send_signal(signal.SIGKILL)
    parent.process.wait()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
