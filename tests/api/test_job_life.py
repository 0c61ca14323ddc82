"""The life of a job over HTTP: post, look, list, cancel, retry, share."""

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.fakes import FakeWorker, Refused

SMOKE = {"preset": "smoke"}


def test_post_answers_202_with_the_job(client: TestClient) -> None:
    answer = client.post("/distill", json={**SMOKE, "labels": ["b", "a"], "priority": 3})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}" == job["links"]["self"]
    assert (job["kind"], job["state"], job["labels"], job["priority"]) == ("distill", "queued", ["a", "b"], 3)
    assert job["spec"]["num_images"] == 20
    assert job["steps"][0]["state"] == "ready"
    assert job["queue"]["position"] == 1
    assert job["error"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", job["created_at"])
    for name in ("self", "events", "metrics", "artifacts", "plots"):
        assert client.get(job["links"][name]).status_code == 200, name
    again = client.get(job["links"]["self"]).json()
    assert {**again, "poll_after_seconds": job["poll_after_seconds"]} == job


def test_finished_job_leads_to_its_results(client: TestClient, distilled: dict[str, Any]) -> None:
    assert distilled["progress"]["done"] == distilled["progress"]["total"]
    assert "cancel" not in distilled["links"]
    synthetic = client.get(distilled["links"]["synthetic_set"]).json()
    assert (synthetic["num_images"], synthetic["target_dim"], synthetic["job_id"]) == (20, 5, distilled["id"])
    assert [one["id"] for one in client.get("/synthetic-sets").json()["data"]] == [synthetic["id"]]
    for name in ("safetensors", "pt", "png", "parquet", "mtt"):
        assert client.get(synthetic["links"][name]).status_code == 200, name
    # Other steps leave files of the same names; these are the set's own.
    assert client.get(synthetic["links"]["safetensors"]).content.startswith(b"synthetic.safetensors of distill")
    assert client.get(synthetic["links"]["preview"]).content.startswith(b"preview.png of export")


def test_evaluation_ends_in_a_report(client: TestClient, distilled: dict[str, Any], worker: FakeWorker) -> None:
    body = {
        "synthetic_set": distilled["results"]["synthetic_set"],
        "downstream": [{"train": "digits-train", "test": "digits-test"}],
        "seeds": 2,
        "label_fractions": [0.5],
    }
    answer = client.post("/evaluate", json=body)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert any(step["cached"] for step in job["steps"])
    worker.finish(job["id"])
    done = client.get(f"/jobs/{job['id']}").json()
    report = client.get(done["links"]["report"]).json()
    assert report["report"] == {"arms": {}}
    assert report["synthetic_set_id"] == body["synthetic_set"]
    assert {name: client.get(link).status_code for name, link in report["links"].items() if client.get(link).status_code != 200} == {}


def test_second_job_uses_what_is_there(client: TestClient, distilled: dict[str, Any]) -> None:
    again = client.post("/distill", json=SMOKE).json()
    assert again["state"] == "succeeded"
    assert all(step["cached"] for step in again["steps"])
    plan = client.post("/distill?dry_run=true", json={**SMOKE, "method": {"iterations": 11}})
    assert plan.status_code == 200
    assert plan.json()["counts"]["cached"] >= 4
    assert plan.json()["counts"]["new"] == 3
    assert plan.json()["disk_bytes"] > 0
    assert len(client.get("/jobs").json()["data"]) == 2


@pytest.mark.parametrize("path", ["/distill", "/distill?dry_run=true"])
def test_dry_run_refuses_as_the_run_would(client: TestClient, refused: Refused, path: str) -> None:
    refused(client.post(path, json={**SMOKE, "num_images": 10**6}), 422, "invalid_spec")
    assert client.get("/jobs").json()["data"] == []


def test_idempotency_key(client: TestClient, refused: Refused) -> None:
    key = {"Idempotency-Key": "order-1"}
    first, second = (client.post("/distill", json=SMOKE, headers=key) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    refused(client.post("/distill", json={**SMOKE, "seed": 1}, headers=key), 409, "idempotency_conflict")
    assert len(client.get("/jobs").json()["data"]) == 1


def test_filters_and_pages(client: TestClient) -> None:
    ids = [client.post("/distill", json={**SMOKE, "seed": seed, "labels": [f"s{seed % 2}"]}).json()["id"] for seed in range(5)]
    seen: list[str] = []
    query = "/jobs?limit=2"
    while True:
        page = client.get(query).json()
        seen += [job["id"] for job in page["data"]]
        assert page["has_more"] == (page["next_cursor"] is not None)
        if not page["has_more"]:
            break
        query = f"/jobs?limit=2&cursor={page['next_cursor']}"
    assert seen == ids[::-1]
    assert [job["id"] for job in client.get("/jobs?label=s1").json()["data"]] == [ids[3], ids[1]]
    assert client.get("/jobs?kind=evaluate").json()["data"] == []
    assert len(client.get("/jobs?state=queued").json()["data"]) == 5


def test_cancel_then_retry(client: TestClient, refused: Refused, worker: FakeWorker) -> None:
    job = client.post("/distill", json=SMOKE).json()
    refused(client.post(f"/jobs/{job['id']}/retry"), 409, "conflict")
    (first,) = worker.steps(job["id"], "ready")
    worker.succeed(first, worker.claim(first.id))
    gone = client.post(job["links"]["cancel"])
    assert gone.json()["state"] == "cancelled"
    assert "running" not in refused(client.post(job["links"]["cancel"]), 409, "conflict")["detail"]
    again, same = (client.post(gone.json()["links"]["retry"], headers={"Idempotency-Key": "once"}) for _ in range(2))
    assert same.json()["id"] == again.json()["id"]
    assert again.status_code == 202
    assert again.json()["parent_id"] == job["id"]
    assert again.headers["location"] == f"/jobs/{again.json()['id']}"
    assert [step["cached"] for step in again.json()["steps"]].count(True) == 1


def test_clone(client: TestClient, refused: Refused, distilled: dict[str, Any]) -> None:
    same = client.post(distilled["links"]["clone"])
    assert (same.status_code, same.headers["location"]) == (202, f"/jobs/{same.json()['id']}")
    assert (same.json()["state"], same.json()["parent_id"], same.json()["spec"]) == ("succeeded", distilled["id"], distilled["spec"])
    key = {"Idempotency-Key": "once"}
    first, second = (
        client.post(distilled["links"]["clone"], json={"priority": 5, "labels": ["x"], "owner": "ada"}, headers=key) for _ in range(2)
    )
    assert first.json()["id"] == second.json()["id"]
    assert (first.json()["priority"], first.json()["labels"], first.json()["owner"]) == (5, ["x"], "ada")
    refused(client.post(distilled["links"]["clone"], headers=key), 409, "idempotency_conflict")
    refused(client.post(distilled["links"]["clone"], json={"spec": {}}), 422, "invalid_request")
    refused(client.post("/jobs/job_unknown/clone"), 404, "not_found")


def test_owners_take_turns_and_are_found(client: TestClient, refused: Refused) -> None:
    posted = [
        client.post("/distill", json={**SMOKE, "dataset": name, "num_images": 10 + size, "owner": owner}).json()
        for owner, name, size in (("ada", "digits-train", 0), ("ada", "digits-train", 1), ("bob", "digits-test", 0))
    ]
    assert [job["owner"] for job in posted] == ["ada", "ada", "bob"]
    assert posted[2]["queue"]["position"] == 2
    assert [job["id"] for job in client.get("/jobs?owner=ada").json()["data"]] == [posted[1]["id"], posted[0]["id"]]
    assert client.get("/jobs?owner=nobody").json()["data"] == []
    nobodys = client.post("/distill", json={**SMOKE, "num_images": 12}).json()
    assert nobodys["owner"] == ""
    assert [job["id"] for job in client.get("/jobs?owner=").json()["data"]] == [nobodys["id"]]
    problem = refused(client.post("/distill", json={**SMOKE, "owner": "a b"}), 422, "invalid_request")
    assert problem["errors"][0]["allowed"] == "letters, digits and . _ @ + -, the first a letter or a digit"


def test_priority_and_labels_change(client: TestClient, refused: Refused, worker: FakeWorker) -> None:
    first, second = (client.post("/distill", json={**SMOKE, "dataset": name}).json() for name in ("digits-train", "digits-test"))
    assert second["queue"]["position"] == 2
    changed = client.patch(second["links"]["self"], json={"priority": 7, "labels": ["x"]})
    assert changed.status_code == 200, changed.text
    assert (changed.json()["priority"], changed.json()["labels"], changed.json()["queue"]["position"]) == (7, ["x"], 1)
    assert client.get(first["links"]["self"]).json()["queue"]["position"] == 2
    assert client.patch(second["links"]["self"], json={"priority": None}).json()["priority"] == 7
    refused(client.patch(second["links"]["self"], json={"priority": 101}), 422, "invalid_request")
    refused(client.patch(second["links"]["self"], json={"prioritty": 1}), 422, "invalid_request")
    refused(client.patch("/jobs/job_unknown", json={"priority": 1}), 404, "not_found")
    client.post(second["links"]["cancel"])
    refused(client.patch(second["links"]["self"], json={"priority": 1}), 409, "conflict")


def test_failed_job_says_which_step_why_and_what_to_try(client: TestClient, worker: FakeWorker) -> None:
    job = client.post("/distill", json=SMOKE).json()
    (first,) = worker.steps(job["id"], "ready")
    worker.fail(first.id, worker.claim(first.id))
    failed = client.get(f"/jobs/{job['id']}").json()
    assert failed["state"] == "failed"
    assert failed["error"]["code"] == "diverged"
    assert failed["error"]["hint"] == "lower method.lr_images"
    assert first.name in failed["error"]["detail"] or first.name in failed["phase"]
