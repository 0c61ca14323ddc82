"""Sweeps over HTTP: posted, planned, refused, ranked."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.fakes import FakeWorker, Refused

MEASURE = {"downstream": [{"train": "digits-train", "test": "digits-test"}], "baselines": ["random"], "seeds": 1, "label_fractions": [0.1]}
SWEEP = {
    "base": {"preset": "smoke"},
    "variants": {"plain": {}, "longer": {"method": {"iterations": 11}}},
    "seeds": 2,
    "evaluate": MEASURE,
    "labels": ["trial"],
}


def test_a_sweep_from_post_to_ranking(client: TestClient, worker: FakeWorker) -> None:
    planned = client.post("/sweeps?dry_run=true", json=SWEEP).json()
    names = [step["name"] for step in planned["steps"]]
    assert {"0/teacher", "plain/0/distill", "longer/1/distill"} <= set(names)
    assert names[-1] == "ranking"
    assert planned["counts"] == {"cached": 0, "shared": 0, "new": len(names)}
    assert client.get("/jobs").json()["data"] == []

    answer = client.post("/sweeps", json=SWEEP, headers={"Idempotency-Key": "once"})
    assert (answer.status_code, answer.json()["kind"], answer.json()["labels"]) == (202, "sweep", ["trial"])
    assert client.post("/sweeps", json=SWEEP, headers={"Idempotency-Key": "once"}).json()["id"] == answer.json()["id"]
    worker.finish(answer.json()["id"])
    job = client.get(answer.headers["location"]).json()
    assert (job["state"], job["phase"]) == ("succeeded", "done")
    report = client.get(job["links"]["report"]).json()
    assert (report["id"], report["job_id"], report["synthetic_set_id"]) == (job["results"]["report"], job["id"], None)
    assert report["report"] == {"arms": {}}
    assert "synthetic_set" not in report["links"]
    assert client.get(report["links"]["table"]).text.startswith("ranking.md of ranking")
    assert client.get(report["links"]["plot"]).headers["content-type"] == "image/png"
    assert client.get(f"/jobs/{job['id']}/plots/ranking.png").status_code == 200
    assert [one["id"] for one in client.get("/jobs?kind=sweep").json()["data"]] == [job["id"]]
    again = client.post("/sweeps?dry_run=true", json=SWEEP).json()
    assert (again["counts"]["new"], again["disk_bytes"]) == (0, 0)


def test_examples_of_sweeps_have_a_plan_as_they_stand(client: TestClient) -> None:
    body = client.get("/openapi.json").json()["paths"]["/sweeps"]["post"]["requestBody"]["content"]["application/json"]
    assert len(body["examples"]) == 2
    for name, example in body["examples"].items():
        assert client.post("/sweeps?dry_run=true", json=example["value"]).status_code == 200, name


@pytest.mark.parametrize(
    ("changes", "field", "given", "said"),
    [
        ({"variants": {"name": {"method": {"iterations": 0}}}}, "variants.name.method.iterations", 0, "greater than or equal to 1"),
        ({"variants": {"a": {"method": {"iteration": 5}}}}, "variants.a.method.iteration", 5, "did you mean iterations"),
        ({"variants": {"a": {"teacher": {"ssl": "dion"}}}}, "variants.a.teacher.ssl", "dion", "did you mean dino"),
        ({"variants": {"a": {"num_images": 5000}, "b": {}}}, "variants.a.num_images", 5000, "has only 1297 images"),
        ({"variants": {"a": {"dataset": "digits-trian"}}}, "variants.a.dataset", "digits-trian", "no dataset"),
        ({"variants": {"a b": {}}}, "variants.a b", "a b", "match pattern"),
        ({"variants": {"a": {"preset": "smok"}}}, "variants.a.preset", "smok", "no preset is called that"),
        ({"variants": {}}, "variants", {}, "at least 1"),
        ({"base": {"preset": "smoke", "num_images": 5000}}, "base.num_images", 5000, "has only 1297 images"),
        ({"base": {"preset": "smoke", "dataset": "no"}}, "base.dataset", "no", "no dataset"),
        ({"evaluate": MEASURE | {"validation": 0.9}}, "evaluate.validation", 0.9, "less than or equal to 0.5"),
        ({"evaluate": MEASURE | {"label_fractions": [0.001]}}, "evaluate.label_fractions.0", 0.001, "without a label"),
        ({"evaluate": MEASURE | {"downstream": [{"train": "digits-train", "test": "x"}]}}, "evaluate.downstream.0.test", "x", "no dataset"),
        ({"seed": 3}, "seed", 3, "did you mean seeds"),
        ({"preset": "ablation"}, "preset", "ablation", "no sweep is called that"),
    ],
)
def test_what_cannot_be_swept_is_refused(
    client: TestClient, refused: Refused, changes: dict[str, Any], field: str, given: Any, said: str
) -> None:
    answer = client.post("/sweeps", json=SWEEP | changes)
    (error,) = refused(answer, 422, answer.json()["code"])["errors"]
    assert (error["field"], error["given"]) == (field, given)
    assert said in error["message"]


def test_ready_sweeps_are_listed_beside_the_presets(client: TestClient) -> None:
    (ready,) = (one for one in client.get("/presets").json()["sweeps"] if one["name"] == "ablation-digits")
    assert ready["variants"] == list(ready["spec"]["variants"])
    assert (
        client.post("/sweeps?dry_run=true", json=ready["spec"]).json()
        == client.post("/sweeps?dry_run=true", json={"preset": ready["name"]}).json()
    )
