"""Observations over HTTP: posted, planned, refused, finished."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.fakes import FakeWorker, Refused


def test_an_observation_from_post_to_figures(client: TestClient, worker: FakeWorker) -> None:
    body = {"dataset": "digits-train", "teacher": {"ssl": "dino"}, "labels": ["look"]}
    planned = client.post("/observe?dry_run=true", json=body)
    assert planned.status_code == 200
    assert [step["name"] for step in planned.json()["steps"]] == ["dataset-449a2107", "teacher", "observe"]
    assert planned.json()["disk_bytes"] > 1_000_000
    assert client.get("/jobs?kind=observe").json()["data"] == []

    answer = client.post("/observe", json=body)
    assert (answer.status_code, answer.json()["kind"], answer.json()["labels"]) == (202, "observe", ["look"])
    assert answer.headers["location"] == f"/jobs/{answer.json()['id']}"
    worker.finish(answer.json()["id"])
    job = client.get(answer.headers["location"]).json()
    assert job["state"] == "succeeded"
    seen = client.get(job["links"]["observation"]).json()
    assert (seen["id"], seen["job_id"]) == (job["results"]["observation"], job["id"])
    assert client.get(seen["links"]["json"]).text.startswith("observations.json of observe")
    assert client.get(f"/jobs/{job['id']}/plots/motion.png").status_code == 200
    assert [plot["name"] for plot in client.get(seen["links"]["plots"]).json()["data"]] == ["motion"]


def test_examples_of_observe_run_as_they_stand(client: TestClient) -> None:
    body = client.get("/openapi.json").json()["paths"]["/observe"]["post"]["requestBody"]["content"]["application/json"]
    for name, example in body["examples"].items():
        assert client.post("/observe", json=example["value"]).status_code == 202, name


@pytest.mark.parametrize(
    ("body", "field", "given", "said"),
    [
        ({"teacher": {"ssl": "given"}}, "teacher", {"ssl": "given"}, "train one with ssl dino, barlow_twins or simclr"),
        ({"teacher": {"ssl": "dino", "snapshots": 2}}, "teacher.snapshots", 2, "too few snapshots"),
        ({"teacher": {"ssl": "dino", "epoch": 2}}, "teacher.epoch", 2, "did you mean epochs"),
        ({"dataset": "digits-trian"}, "dataset", "digits-trian", "no dataset"),
        ({"run": 3}, "run", 3, "did you mean runs"),
        ({"experts": 1, "student": {"depth": 5}}, "student.depth", 5, "less than one pixel"),
    ],
)
def test_what_cannot_be_observed_is_refused(client: TestClient, refused: Refused, body: Any, field: str, given: Any, said: str) -> None:
    answer = client.post("/observe", json=body)
    (error,) = refused(answer, 422, answer.json()["code"])["errors"]
    assert (error["field"], error["given"]) == (field, given)
    assert said in error["message"]


def test_there_is_no_observation_of_that_name(client: TestClient, refused: Refused) -> None:
    refused(client.get("/observations/obs_none"), 404, "not_found")
