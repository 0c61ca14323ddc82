"""Bad input: each is refused at once, with the field, what was given and what is allowed."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from tests.api.fakes import Refused


@pytest.fixture
def client(gallery: tuple[TestClient, dict[str, Any]]) -> TestClient:
    """What is refused changes nothing: one installation serves all."""
    return gallery[0]


BAD_BODIES: list[tuple[str, dict[str, Any], str, Any, str]] = [
    # address, body, field, given, a part of the message
    ("/distill", {"preset": "smok"}, "preset", "smok", "no preset"),
    ("/distill", {"preset": 5}, "preset", 5, "no preset"),
    ("/distill", {"preset": "smoke", "dataset": "digits-trian"}, "dataset", "digits-trian", ""),
    ("/distill", {"datset": "digits-train"}, "datset", "digits-train", "did you mean dataset"),
    ("/distill", {"method": {"name": "mkdt", "inner_step": 3}}, "method.inner_step", 3, "did you mean inner_steps"),
    ("/distill", {"preset": "smoke", "teacher": {"backbone": {"nmae": "x"}}}, "teacher.backbone.nmae", "x", "did you mean name"),
    ("/distill", {"method": {"name": "MKTD"}}, "method.name", "MKTD", "did you mean mkdt"),
    ("/distill", {"teacher": {"epochs": 3}}, "teacher.ssl", None, "which kind"),
    ("/distill", {"teacher": 5}, "teacher", 5, "JSON object"),
    ("/distill", {"teacher": {"ssl": "given"}}, "teacher", {"ssl": "given"}, "checkpoint"),
    ("/distill", {"preset": "smoke", "num_images": 1_000_000}, "num_images", 1_000_000, "only"),
    ("/distill", {"num_images": 0}, "num_images", 0, "greater than or equal to 1"),
    ("/distill", {"preset": "smoke", "method": {"iterations": 0}}, "method.iterations", 0, "greater than or equal to 1"),
    ("/distill", {"preset": "smoke", "teacher": {"lr": float("nan")}}, "teacher.lr", "nan", "finite"),
    ("/distill", {"preset": "smoke", "student": {"depth": 6}}, "student.depth", 6, "less than one pixel"),
    ("/distill", {"preset": "smoke", "student": {"name": "resnet19"}}, "student.name", "resnet19", "resnet18"),
    ("/distill", {"preset": "smoke", "student": {"name": "vgg11"}}, "student.name", "vgg11", "cannot read 8x8 pixels"),
    ("/distill", {"preset": "smoke", "student": {"name": "resnet18", "depth": 3}}, "student.depth", 3, "4 stages"),
    ("/distill", {"preset": "smoke", "method": {"augment": ["flip", "rotate"]}}, "method.augment.1", "rotate", "cutout"),
    ("/distill", {"preset": "smoke", "method": {"init": "kmeans"}}, "method.init", "kmeans", "k_means"),
    ("/distill", {"preset": "smoke", "labels": ["a b"]}, "labels.0", "a b", "may not have"),
    ("/distill", {"preset": "smoke", "owner": "Ada Lovelace"}, "owner", "Ada Lovelace", "may not have"),
    ("/distill", {"preset": "smoke", "priority": True}, "priority", True, "integer"),
    ("/distill", {"preset": "smoke", "labels": "a"}, "labels", "a", "a list"),
    ("/evaluate", {"downstream": [{"train": "digits-train", "test": "digits-test"}]}, "synthetic_set", None, "is needed"),
    ("/evaluate", {"synthetic_set": "syn_x", "downstream": []}, "downstream", [], "at least 1"),
    ("/evaluate", {"synthetic_set": "syn_x", "downstream": [{"train": "digits-train"}]}, "downstream.0.test", None, "is needed"),
    (
        "/evaluate",
        {"synthetic_set": "syn_x", "downstream": [{"train": "digits-train", "test": "digits-test"}]},
        "synthetic_set",
        "syn_x",
        "",
    ),
]


@pytest.mark.parametrize(("path", "body", "field", "given", "said"), BAD_BODIES)
def test_bad_body(client: TestClient, refused: Refused, path: str, body: Any, field: str, given: Any, said: str) -> None:
    answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    problem = refused(answer, 422, answer.json()["code"])
    assert [error["field"] for error in problem["errors"]] == [field]
    (error,) = problem["errors"]
    assert error["given"] == given
    assert said in error["message"]
    assert field in problem["detail"]


@pytest.mark.parametrize(
    ("body", "field", "allowed"),
    [
        ({"preset": "smoke", "method": {"inner_steps": 0}}, "method.inner_steps", "1 to 10000"),
        ({"seed": -1}, "seed", "at least 0 and less than 2147483648"),
        ({"preset": "smoke", "teacher": {"lr": 0}}, "teacher.lr", "more than 0.0"),
        ({"method": {"name": "mtt"}}, "method.name", ["dino_tm", "high_loss", "k_means", "mkdt", "mkdt_plus", "random"]),
        ({"preset": "smoke", "method": {"optimizer": "rmsprop"}}, "method.optimizer", ["sgd", "adam"]),
        ({"preset": "smoke", "student": {"deep": 2}}, "student.deep", ["depth", "name", "width"]),
    ],
)
def test_refusal_tells_what_is_allowed(client: TestClient, refused: Refused, body: Any, field: str, allowed: Any) -> None:
    (error,) = refused(client.post("/distill", json=body), 422, "invalid_request")["errors"]
    assert (error["field"], error["allowed"]) == (field, allowed)


def test_all_wrong_fields_at_once(client: TestClient, refused: Refused) -> None:
    problem = refused(client.post("/distill", json={"num_images": 0, "seed": -1, "sed": 1}), 422, "invalid_request")
    assert {error["field"] for error in problem["errors"]} == {"num_images", "seed", "sed"}
    assert "2 more" in problem["detail"]


def test_evaluation_that_makes_no_sense(refused: Refused, gallery: tuple[TestClient, dict[str, Any]]) -> None:
    client, distilled = gallery
    body = {"synthetic_set": distilled["results"]["synthetic_set"], "downstream": [{"train": "digits-train", "test": "digits-test"}]}
    problem = refused(client.post("/evaluate", json={**body, "label_fractions": [0.5, 0.0001]}), 422, "invalid_spec")
    (error,) = problem["errors"]
    assert (error["field"], error["given"]) == ("label_fractions.1", 0.0001)
    assert "or more" in error["allowed"]


@pytest.mark.parametrize(
    ("content", "media", "status", "code"),
    [
        ('{"a":', "application/json", 400, "invalid_json"),
        ("[" * 100_000, "application/json", 400, "bad_request"),
        ('{"num_images": ' + "9" * 5000 + "}", "application/json", 400, "bad_request"),
        ('{"preset": "smoke"}', "text/plain", 415, "unsupported_media_type"),
        ("[]", "application/json", 422, "invalid_request"),
        ("", "application/json", 422, "invalid_request"),
        ('{"dataset": ' + "[" * 900 + "]" * 900 + "}", "application/json", 422, "invalid_request"),
        ('{"dataset": "a\\u0000b"}', "application/json", 422, "invalid_request"),
        ('{"dataset": "\\ud800"}', "application/json", 422, "invalid_request"),
        ('{"\\ud800": 1}', "application/json", 422, "invalid_request"),
    ],
)
def test_unreadable_body(client: TestClient, refused: Refused, content: str, media: str, status: int, code: str) -> None:
    refused(client.post("/distill", content=content, headers={"Content-Type": media}), status, code)


def test_json_body_has_a_limit_announced_or_not(client: TestClient, refused: Refused) -> None:
    headers = {"Content-Type": "application/json"}
    refused(client.post("/distill", content=b" " * (1 << 20) + b"{}", headers=headers), 413, "too_large")

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    refused(client.post("/distill", content=pieces(), headers=headers), 413, "too_large")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("PUT", "/distill", 405, "method_not_allowed"),
        ("GET", "/jobs/job_nosuch", 404, "not_found"),
        ("GET", "/jobs/job_nosuch/events", 404, "not_found"),
        ("GET", "/jobs/job_nosuch/metrics", 404, "not_found"),
        ("GET", "/jobs/job_nosuch/artifacts", 404, "not_found"),
        ("GET", "/jobs/job_nosuch/plots", 404, "not_found"),
        ("GET", "/jobs/job_nosuch/plots/losses.png", 404, "not_found"),
        ("GET", "/jobs/job_nosuch/plots/losses.exe", 422, "invalid_request"),
        ("POST", "/jobs/job_nosuch/cancel", 404, "not_found"),
        ("POST", "/jobs/job_nosuch/retry", 404, "not_found"),
        ("GET", "/artifacts/art_nosuch", 404, "not_found"),
        ("GET", "/artifacts/art_nosuch/content", 404, "not_found"),
        ("GET", "/synthetic-sets/syn_nosuch", 404, "not_found"),
        ("GET", "/synthetic-sets/syn_nosuch/download", 404, "not_found"),
        ("GET", "/reports/rep_nosuch", 404, "not_found"),
        ("GET", "/datasets/digits-trian", 404, "not_found"),
        ("GET", "/datasets/a%00b", 422, "invalid_request"),
        ("GET", "/jobs/a%00b", 422, "invalid_request"),
        ("GET", "/jobs?state=sleeping", 422, "invalid_request"),
        ("GET", "/jobs?limit=0", 422, "invalid_request"),
        ("GET", "/jobs?cursor=nonsense", 422, "invalid_request"),
        ("GET", "/jobs?label=%00", 422, "invalid_request"),
        ("GET", "/static/nothing.css", 404, "not_found"),
    ],
)
def test_every_refusal_is_a_problem(client: TestClient, refused: Refused, method: str, path: str, status: int, code: str) -> None:
    refused(client.request(method, path), status, code)


def test_a_cursor_that_is_none_is_repeated_with_what_is_allowed(client: TestClient, refused: Refused) -> None:
    (error,) = refused(client.get("/jobs?cursor=nonsense"), 422, "invalid_request")["errors"]
    assert (error["field"], error["given"]) == ("cursor", "nonsense")
    assert "next_cursor" in error["allowed"]


def test_near_miss_of_a_dataset_is_suggested(client: TestClient, refused: Refused) -> None:
    assert "digits-train" in refused(client.get("/datasets/digits-trian"), 404, "not_found")["detail"]


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [("POST", "/distill?dry_rum=true", "dry_rum"), ("GET", "/jobs?states=queued", "states"), ("GET", "/methods?x=1", "x")],
)
def test_misspelt_parameter(client: TestClient, refused: Refused, method: str, path: str, field: str) -> None:
    answer = client.request(method, path, json={"preset": "smoke"} if method == "POST" else None)
    (error,) = refused(answer, 422, "invalid_request")["errors"]
    assert error["field"] == field
    assert field == "x" or "did you mean" in error["message"]


def test_database_that_is_away(client: TestClient, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise OperationalError("SELECT secret", {}, Exception("connection refused"))

    monkeypatch.setattr("jobs.views.some", away)
    answer = client.get("/jobs/job_x")
    assert "secret" not in refused(answer, 503, "not_ready")["detail"]
    assert answer.headers["retry-after"]


@pytest.mark.parametrize("words", ["database or disk is full", 'could not extend file "x": No space left on device'])
def test_database_whose_disk_is_full(client: TestClient, refused: Refused, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    def full(*_: Any) -> None:
        raise OperationalError("INSERT secret", {}, Exception(words))

    monkeypatch.setattr("jobs.views.some", full)
    assert "disk is full" in refused(client.get("/jobs/job_x"), 507, "store_full")["detail"]


def test_crash_is_a_problem_too(client: TestClient, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.views.some", lambda *_: 1 / 0)
    problem = refused(client.get("/jobs/job_x", headers={"X-Request-ID": "mine-1"}), 500, "internal")
    assert problem["request_id"] == "mine-1"
    assert "division" not in problem["detail"]
    assert 'route="/jobs/{job_id}",status="500"} 1.0' in client.get("/metrics").text


def test_request_id_is_echoed_or_made(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "abc-123"}).headers["x-request-id"] == "abc-123"
    assert client.get("/healthz", headers={"X-Request-ID": "a b<script>"}).headers["x-request-id"].startswith("req_")
    first, second = (client.get("/healthz").headers["x-request-id"] for _ in range(2))
    assert first != second
