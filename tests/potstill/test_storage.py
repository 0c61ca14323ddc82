import json
from typing import Any

import pytest

from potstill.cli import main
from potstill.client import Client, Unreachable
from potstill.stack import free_port
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
    "has_more": False,
    "next_cursor": None,
}
NOTHING: dict[str, Any] = FOUND | {"dry_run": False, "unneeded": [], "files": 0, "bytes": 0, "condemned_files": 0, "deleted_files": 0}


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
    service.answers = {"POST /gc?dry_run=false": [(200, FOUND | {"dry_run": False}), (200, NOTHING)]}
    assert main(["gc", "--url", service.url]) == 0
    assert "Let go of 1,200 files (5.4 GB)." in (out := capsys.readouterr().out)
    assert "Deleted 2 files" in out
    assert main(["gc", "--url", service.url]) == 0
    assert capsys.readouterr().out == "Nothing new to let go of.\n"


def test_gc_goes_on_until_nothing_is_left_and_adds_up(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"kind": "dataset", "files": 1, "bytes": 10**9, "oldest": "2026-02-01T00:00:00Z"}
    parts = [
        FOUND | {"dry_run": False, "has_more": True, "next_cursor": "7f"},
        FOUND | {"dry_run": False, "unneeded": [more, FOUND["unneeded"][0] | {"oldest": "2025-01-01T00:00:00Z"}], "condemned_files": 7},
    ]
    service.answers = {"POST /gc?dry_run=false": [(200, parts[0])], "POST /gc?dry_run=false&cursor=7f": [(200, parts[1])]}
    heard: list[str | None] = []
    with Client(service.url) as client:
        total = client.gc(on_part=lambda part: heard.append(part["next_cursor"]))
    assert heard == ["7f", None]
    assert total["unneeded"] == [
        {"kind": "experts", "files": 2400, "bytes": 10_800_000_000, "oldest": "2025-01-01T00:00:00Z"},
        more,
    ]
    assert [total[name] for name in ("files", "deleted_files", "deleted_bytes", "condemned_files")] == [2400, 4, 4000, 7]
    assert main(["gc", "--url", service.url]) == 0
    assert "Let go of 2,400 files (10.8 GB)." in capsys.readouterr().out


BAD: dict[str, Any] = {
    "sha256": "ab" * 32,
    "named_by": [{"id": "art_1", "name": "teacher.safetensors", "kind": "teacher", "step": "teacher", "job_id": "job_1"}],
}
SENT: dict[str, Any] = {"sha256": "cd" * 32, "named_by": [BAD["named_by"][0] | {"id": "art_2", "step": None, "job_id": None}]}
WHOLE: dict[str, Any] = {"files": 1000, "bytes": 10**9, "damaged": [], "missing": [], "has_more": False, "next_cursor": None}


def test_verify_names_what_is_wrong_and_is_status_1(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [
        WHOLE | {"damaged": [BAD], "has_more": True, "next_cursor": "c0"},
        WHOLE | {"damaged": [BAD | {"named_by": []}], "missing": [SENT]},
    ]
    service.answers = {"POST /verify": [(200, parts[0])], "POST /verify?cursor=c0": [(200, parts[1])]}
    assert main(["verify", "--url", service.url]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "damaged: teacher.safetensors art_1, step teacher of job_1 (abababababab)",
        "damaged: a file that nothing needs (abababababab)",
        "missing: teacher.safetensors art_2, sent by a user: send it again (cdcdcdcdcdcd)",
        "Read 2,000 files (2.0 GB): 2 damaged, 1 missing.",
        "What was damaged is set aside, and made again when a job needs it; potstill clone JOB posts one that needs the same results.",
    ]


def test_verify_of_a_whole_store_is_status_0(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers = {"POST /verify": [(200, WHOLE)]}
    assert main(["verify", "--url", service.url]) == 0
    assert capsys.readouterr().out == "Read 1,000 files (1.0 GB): 0 damaged, 0 missing.\n"


def test_a_long_work_outlasts_an_api_that_restarts_but_does_not_wait_for_one_that_is_not_there(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answers = {"POST /verify": [(200, WHOLE | {"has_more": True, "next_cursor": "7f"})], "POST /verify?cursor=7f": [(200, WHOLE)]}
    asked: list[str] = []
    ask = Client._json

    def answer(client: Client, method: str, path: str, **options: Any) -> Any:
        asked.append(str(options["params"]))
        if len(asked) in (2, 3):
            raise Unreachable("it restarts")
        return ask(client, method, path, **options)

    monkeypatch.setattr(Client, "_json", answer)
    monkeypatch.setattr("potstill.client.time.sleep", lambda seconds: None)
    with Client(service.url) as client:
        assert client.verify()["files"] == 2000
        assert asked == ["{}"] + ["{'cursor': '7f'}"] * 3
        monkeypatch.setattr("potstill.client.PATIENCE", 0.0)
        asked.clear()
        with pytest.raises(Unreachable):
            client.verify()
    monkeypatch.undo()
    monkeypatch.setattr("potstill.client.time.sleep", lambda seconds: pytest.fail("it waited"))
    with Client(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(Unreachable):
        client.gc()


def test_pin_and_unpin(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers = {"PATCH /jobs/job_1": [(200, {"id": "job_1"})]}
    assert main(["pin", "job_1", "--url", service.url]) == 0
    assert "job_1 is pinned" in capsys.readouterr().out
    assert main(["unpin", "job_1", "--url", service.url]) == 0
    assert "job_1 is not pinned" in capsys.readouterr().out
    assert [json.loads(request[2]) for request in service.requests] == [{"pinned": True}, {"pinned": False}]


def test_sizes_are_for_people() -> None:
    assert [size(n) for n in (0, 999, 1000, 12_345_678, 2.5e15)] == ["0 bytes", "999 bytes", "1.0 kB", "12.3 MB", "2500.0 TB"]
