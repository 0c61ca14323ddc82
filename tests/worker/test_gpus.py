"""Each pool child has a GPU of its own, and keeps it when it is replaced."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.settings import Settings
from tests.worker.service import RedisServer, Service, make_service, until
from worker import __main__ as command
from worker import gpus

LISTED = """\
GPU 0: NVIDIA H200 (UUID: GPU-aaaa)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb)
  MIG 3g.20gb     Device  0: (UUID: MIG-b1)
  MIG 3g.20gb     Device  1: (UUID: MIG-b2)
GPU 2: NVIDIA H200 (UUID: GPU-cccc)
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with an nvidia-smi that lists what is in the file LISTED."""
    folder = tmp_path / "driver"
    folder.mkdir()
    (folder / "listed").write_text(LISTED)
    (folder / "nvidia-smi").write_text(f'#!/bin/sh\n[ "$*" = -L ] && cat {folder / "listed"}\n')
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    return folder


def test_all_gpus_are_found_and_the_parts_of_a_divided_one(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus.visible() == ["GPU-aaaa", "MIG-b1", "MIG-b2", "GPU-cccc"]
    (driver / "listed").write_text("NVIDIA-SMI has failed because it could not talk to the driver.\n")
    assert gpus.visible() == []
    monkeypatch.setenv("PATH", str(driver.parent))
    assert gpus.visible() == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2", ["2"]),
        ("3, 1", ["3", "1"]),
        ("GPU-cccc,MIG-b1", ["GPU-cccc", "MIG-b1"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("NoDevFiles", []),
    ],
)
def test_a_list_that_is_given_is_kept_to(driver: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: list[str]) -> None:
    monkeypatch.setenv(gpus.VISIBLE, given)
    assert gpus.visible() == expected


def test_children_share_a_gpu_only_where_there_are_more_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "a,b,c")
    assert [gpus.pin(["a", "b", "c"], child, wanted=True) for child in range(5)] == ["a", "b", "c", "a", "b"]
    assert os.environ[gpus.VISIBLE] == "b"
    assert gpus.pin(["a", "b", "c"], 0, wanted=False) is None
    assert os.environ[gpus.VISIBLE] == ""
    monkeypatch.delenv(gpus.VISIBLE)
    assert gpus.pin([], 3, wanted=True) is None
    assert gpus.VISIBLE not in os.environ


@pytest.mark.parametrize(
    ("arguments", "device", "expected"),
    [
        ((), "auto", "4"),
        (("--queues", "gpu", "--concurrency", "auto"), "cuda", "4"),
        (("--concurrency", "3"), "auto", "3"),
        (("--queues", "cpu,io"), "auto", "1"),
        ((), "cpu", "1"),
        ((), "cuda:1", "1"),
    ],
)
def test_there_is_a_child_for_each_gpu(
    driver: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], device: str, expected: str
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("sys.argv", ["worker", *arguments])
    monkeypatch.setattr(command, "get_settings", lambda: Settings(device=device))
    monkeypatch.setattr(command, "_wait_for_database", lambda: None)
    monkeypatch.setattr(command.app, "worker_main", started.append)
    command.main()
    (flags,) = started
    assert flags[flags.index("--concurrency") + 1] == expected


@pytest.mark.parametrize("given", ["0", "-1", "many", ""])
def test_a_number_of_children_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    monkeypatch.setattr("sys.argv", ["worker", f"--concurrency={given}"])
    with pytest.raises(SystemExit):
        command.main()
    assert f"--concurrency is auto or a number from 1, not {given!r}" in capsys.readouterr().err


@pytest.fixture
def service(tmp_path: Path, sqlite_file: Path, redis_server: RedisServer, driver: Path) -> Iterator[Service]:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(sqlite_file, home / "potstill.db")
    service = make_service(home, redis_server.url)
    yield service
    service.stop()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gpu_of_template(child: int) -> str | None:
    """What the template of a pool child was started with."""
    with contextlib.suppress(OSError):  # it is gone
        for pid in children(child):
            for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if line.startswith(b"CUDA_VISIBLE_DEVICES="):
                    return line.partition(b"=")[2].decode()
    return None


def test_a_child_that_is_replaced_leaves_its_gpu_to_the_next(service: Service, driver: Path) -> None:
    (driver / "listed").write_text(LISTED.partition("GPU 1")[0] + LISTED.partition("b2)\n")[2])
    main = service.worker("one").pid

    def dealt() -> dict[int, str | None]:
        found = {child: gpu_of_template(child) for child in children(main)}
        return found if len(found) == 2 and all(found.values()) else {}

    first = until(dealt, 60)
    assert sorted(first.values()) == ["GPU-aaaa", "GPU-cccc"]
    killed = min(first)
    os.kill(killed, signal.SIGKILL)
    second = until(lambda: killed not in (now := dealt()) and now, 60)
    (kept,) = first.keys() & second.keys()
    (new,) = second.keys() - first.keys()
    assert (second[kept], second[new]) == (first[kept], first[killed])
