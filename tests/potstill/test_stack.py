import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from potstill.errors import PotstillError
from potstill.stack import Stack, check_port, clear, free_port


def wait_until(done: object, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def test_the_whole_service_starts_mends_itself_and_leaves_nothing(tmp_path: Path) -> None:
    port, home = free_port(), tmp_path / "home"
    url = f"http://127.0.0.1:{port}"
    up = subprocess.Popen(
        [sys.executable, "-m", "potstill", "up", "--port", str(port), "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"},  # other tests set it
    )
    try:
        # The API answers a moment before the stack has seen that it does, and one that dies in that moment is not started again.
        assert up.stdout is not None
        assert any(f"answers at {url}" in line for line in up.stdout), "it ended before it was ready"
        family = psutil.Process(up.pid).children(recursive=True)
        lines = {child.pid: " ".join(child.cmdline()) for child in family}
        assert sum("redis-server" in line for line in lines.values()) == 1
        assert not [c for child in family if "redis" in lines[child.pid] for c in child.net_connections("tcp")], "Redis listens on TCP"
        assert (home / "run").stat().st_mode & 0o777 == 0o700

        with pytest.raises(PotstillError, match=rf"another stack \(process {up.pid}\) runs on"), Stack(home):
            pass

        (api,) = [child for child in family if "uvicorn" in lines[child.pid]]
        api.kill()
        wait_until(lambda: not api.is_running(), 10)
        wait_until(lambda: answers(url), 30)
        family += psutil.Process(up.pid).children(recursive=True)
    finally:
        up.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, _ = up.communicate(timeout=40)
    assert time.monotonic() - began < 15
    assert up.returncode == 0, out
    assert "the API died and was started again" in out
    assert out.rstrip().endswith("Stopped.")
    assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not (home / "run").exists()


def test_a_taken_port_is_named_with_what_to_try() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PotstillError, match=rf"127\.0\.0\.1:{port} .*in use.*PORT={port + 1}"):
            check_port(port)


def test_a_part_that_cannot_start_is_shown_with_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "potstill.db").write_bytes(b"this is not a database, nor was it ever one" * 100)
    with (
        pytest.raises(PotstillError, match=r"(?s)database .*potstill\.db could not be brought up to date.*migrate\.log.*not a database"),
        Stack(tmp_path),
    ):
        pass
    assert not (tmp_path / "run").exists()
    with (tmp_path / "stack.lock").open() as lock:
        assert lock.read() == str(os.getpid())


def test_clear_empties_a_home_and_nothing_else(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "letters"
    for folder in (home, other):
        (folder / "blobs").mkdir(parents=True)
        (folder / "blobs" / "a").touch()
    (home / "stack.lock").touch()
    clear(home)
    assert [path.name for path in home.iterdir()] == ["stack.lock"]
    with pytest.raises(PotstillError, match="was not made by potstill"):
        clear(other)
    assert (other / "blobs" / "a").exists()
    clear(tmp_path / "absent")
