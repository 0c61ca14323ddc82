from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.client import LONGEST_PAUSE, RESPITE, Client, Unreachable, pause
from potstill.errors import JobFailed
from potstill.problems import Refused
from potstill.stack import free_port
from tests.potstill.conftest import Service

JOB: dict[str, Any] = {"id": "job_1", "kind": "distill", "state": "running", "steps": []}
PROBLEM = {
    "title": "The request does not make sense",
    "detail": "num_images: too many",
    "errors": [
        {"field": "num_images", "message": "dataset x has only 10 images", "given": 20, "allowed": "1 to 10"},
        {"field": "method.name", "message": "there is no 'mkd'", "given": "mkd", "allowed": ["mkdt", "random"]},
    ],
}


def test_refusal_names_each_field_with_what_was_given_and_allowed(service: Service) -> None:
    service.answers = {"POST /distill": [(422, PROBLEM)]}
    with Client(service.url) as client, pytest.raises(Refused) as caught:
        client.distill({"num_images": 20})
    assert str(caught.value) == (
        "num_images: dataset x has only 10 images (given 20); allowed: 1 to 10; "
        "method.name: there is no 'mkd' (given \"mkd\"); allowed: mkdt, random"
    )
    assert caught.value.status == 422


def test_refusal_without_fields_or_without_a_problem(service: Service) -> None:
    service.answers = {
        "GET /jobs/a": [(404, {"title": "There is no such thing", "detail": "no job is called a"})],
        "GET /jobs/b": [(500, "bad gateway")],
    }
    with Client(service.url) as client:
        with pytest.raises(Refused, match="There is no such thing: no job is called a"):
            client.job("a")
        with pytest.raises(Refused, match="/jobs/b answered 500"):
            client.job("b")


def test_wait_reports_each_state_and_ends(service: Service) -> None:
    service.answers = {"GET /jobs/job_1": [(200, JOB), (200, JOB | {"state": "succeeded"})]}
    seen: list[str] = []
    with Client(service.url) as client:
        job = client.wait("job_1", lambda now: seen.append(now["state"]), interval=0.01)
    assert seen == ["running", "succeeded"]
    assert job["state"] == "succeeded"


def test_who_waits_outlasts_an_api_without_its_database_and_a_proxy_without_its_api(service: Service) -> None:
    away = {"title": "The service is not ready", "detail": "the database does not answer"}
    service.answers = {"GET /jobs/job_1": [(503, away), (502, "bad gateway"), (200, JOB | {"state": "succeeded"})]}
    with Client(service.url) as client:
        assert client.wait("job_1", interval=0.01)["state"] == "succeeded"
    service.answers = {"GET /jobs": [(503, away)]}
    with Client(service.url) as client, pytest.raises(Unreachable, match="the database does not answer"):
        client.jobs()


def test_patience_begins_with_the_first_failure_however_long_ago_the_last_answer_was(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("potstill.client.time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(seconds)))
    moments = iter([0.0, 100.0, 100.5, 159.0, 161.0])
    failing = iter([False, True, True, True, True])

    def job(_id: str) -> dict[str, Any]:
        now[0] = next(moments)
        if next(failing):
            raise Unreachable("away")
        return JOB | {"poll_after_seconds": 60.0}

    with Client("http://127.0.0.1:1") as client:
        monkeypatch.setattr(client, "job", job)
        with pytest.raises(Unreachable):
            client.wait("job_1")
    assert now[0] == 161.0


def test_an_api_that_is_away_says_when_to_come_again() -> None:
    assert [Unreachable("x", said).again for said in ("", "5", "3600", "Wed, 21 Oct 2026 07:28:00 GMT")] == [1.0, 5.0, LONGEST_PAUSE, 1.0]


def test_failed_job_says_which_step_why_and_what_to_try(service: Service) -> None:
    error = {"code": "teacher_collapsed", "detail": "features of rank 1", "hint": "train longer"}
    steps = [{"name": "teacher", "state": "failed"}, {"name": "targets", "state": "cancelled"}]
    service.answers = {"GET /jobs/job_1": [(200, JOB | {"state": "failed", "error": error, "steps": steps})]}
    with Client(service.url) as client, pytest.raises(JobFailed) as caught:
        client.wait("job_1")
    assert str(caught.value) == "distill job_1 failed in step teacher (teacher_collapsed): features of rank 1; train longer"
    assert caught.value.job["state"] == "failed"


def test_nothing_listens() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(Unreachable, match="potstill up"):
        client.datasets()


def test_upload_sends_the_file_and_reports_all_of_it(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "cats.zip"
    path.write_bytes(b"PK" + bytes(300_000))
    service.answers = {"POST /datasets": [(201, {"id": "ds_1", "name": "cats"})]}
    seen: list[tuple[int, int]] = []
    with Client(service.url) as client:
        assert client.upload(path, on_progress=lambda done, total: seen.append((done, total)))["id"] == "ds_1"
    _, headers, body = service.requests[0]
    assert headers["Content-Type"].startswith("multipart/form-data")
    assert path.read_bytes() in body
    assert b'name="name"\r\n\r\ncats' in body
    assert seen[-1] == (300_002, 300_002)
    assert len(seen) > 2


def test_datasets_come_from_all_pages(service: Service) -> None:
    service.answers = {
        "GET /datasets?limit=200": [(200, {"data": [{"id": "ds_2"}], "has_more": True, "next_cursor": "ds_2"})],
        "GET /datasets?limit=200&cursor=ds_2": [(200, {"data": [{"id": "ds_1"}], "has_more": False, "next_cursor": None})],
    }
    with Client(service.url) as client:
        assert [one["id"] for one in client.datasets()] == ["ds_2", "ds_1"]


def test_idempotency_key_travels_as_a_header(service: Service) -> None:
    service.answers = {"POST /distill": [(202, JOB)]}
    with Client(service.url) as client:
        client.distill({}, idempotency_key="k-1")
    assert service.requests[0][1]["Idempotency-Key"] == "k-1"


def test_who_waits_leaves_a_busy_service_alone() -> None:
    assert pause({"poll_after_seconds": 8.0}, took=0.01) == 8.0
    assert pause({"poll_after_seconds": 0.6}, took=1.0) == RESPITE
    assert pause({"poll_after_seconds": None}, took=0.01, interval=2.0) == 2.0
    assert pause({}, took=0.01) == 0.5, "of a service before it said so"
