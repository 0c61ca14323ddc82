import json
from typing import Any

import pytest

from potstill.cli import main
from potstill.storage import size
from tests.potstill.conftest import Service

FOUND: dict[str, Any] = {
    "dry_run": True,
    "unneeded": [{"kind": "experts", "files": 1200, "bytes": 5_400_000_000, "oldest": "2026-03-04T05:06:07Z"}],
    "files": 1200,
    "bytes": 5_400_000_000,
    "condemned_files": 1,
    "condemned_bytes": 999,
    "deleted_files": 2,
    "deleted_bytes": 2000,
}


def test_gc_tells_what_would_go(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers = {"POST /gc?dry_run=true&unused_days=30.0": [(200, FOUND)]}
    assert main(["gc", "--url", service.url, "--dry-run", "--unused-days", "30"]) == 0
    out = capsys.readouterr().out
    assert "experts" in out
    assert "2026-03-04" in out
    assert "Would let go of 1,200 files (5.4 GB)." in out
    assert "Would delete 2 files (2.0 kB) that had waited for an hour." in out
    assert "Waiting: 1 file (999 bytes). What" in out


def test_gc_does_it(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = {"dry_run": False, "unneeded": [], "files": 0, "bytes": 0, "condemned_files": 0, "deleted_files": 0}
    service.answers = {"POST /gc?dry_run=false": [(200, FOUND | {"dry_run": False}), (200, nothing)]}
    assert main(["gc", "--url", service.url]) == 0
    assert "Let go of 1,200 files (5.4 GB)." in (out := capsys.readouterr().out)
    assert "Deleted 2 files" in out
    assert main(["gc", "--url", service.url]) == 0
    assert capsys.readouterr().out == "Nothing new to let go of.\n"


def test_pin_and_unpin(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers = {"PATCH /jobs/job_1": [(200, {"id": "job_1"})]}
    assert main(["pin", "job_1", "--url", service.url]) == 0
    assert "job_1 is pinned" in capsys.readouterr().out
    assert main(["unpin", "job_1", "--url", service.url]) == 0
    assert "job_1 is not pinned" in capsys.readouterr().out
    assert [json.loads(request[2]) for request in service.requests] == [{"pinned": True}, {"pinned": False}]


def test_sizes_are_for_people() -> None:
    assert [size(n) for n in (0, 999, 1000, 12_345_678, 2.5e15)] == ["0 bytes", "999 bytes", "1.0 kB", "12.3 MB", "2500.0 TB"]
