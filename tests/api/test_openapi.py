"""The addresses of the contract, the shape of their answers in OpenAPI, and the pages."""

import re
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.examples import JOB
from api.schemas import JobBody
from jobs.errors import WrongRevision
from jobs.settings import Settings

CONTRACT = """
GET /healthz  GET /readyz  GET /version  GET /metrics
GET /datasets  POST /datasets  GET /datasets/{}  GET /datasets/{}/preview.png
POST /distill  POST /evaluate  POST /observe  POST /sweeps
GET /jobs  GET /jobs/{}  PATCH /jobs/{}  POST /jobs/{}/cancel  POST /jobs/{}/retry
GET /jobs/{}/events  GET /jobs/{}/metrics  GET /jobs/{}/artifacts  GET /jobs/{}/plots  GET /jobs/{}/plots/{}.{}
GET /artifacts/{}  GET /artifacts/{}/content  HEAD /artifacts/{}/content  POST /artifacts
GET /synthetic-sets  GET /synthetic-sets/{}  GET /synthetic-sets/{}/preview.png
GET /synthetic-sets/{}/download  HEAD /synthetic-sets/{}/download
GET /reports/{}  GET /observations/{}  GET /methods  GET /presets  GET /workers  GET /queue  POST /gc  POST /verify
"""


def test_every_address_of_the_contract_is_in_openapi(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    offered = {f"{method.upper()} {re.sub(r'{[^}]*}', '{}', path)}" for path, item in paths.items() for method in item}
    wanted = {" ".join(pair) for pair in re.findall(r"(\S+) (\S+)", CONTRACT)}
    assert wanted - offered == set()


def test_openapi_tells_real_shapes(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["responses"]["4XX"]["content"].keys() == {"application/problem+json"}, where
            for status, answer in operation["responses"].items():
                if status.startswith("2") and status not in ("204", "206") and "application/json" in answer.get("content", {}):
                    assert answer["content"]["application/json"]["schema"] != {}, where
    names = re.findall(r'"\$ref": ?"#/components/schemas/([^"]+)"', client.get("/openapi.json").text)
    assert set(names) <= set(schema["components"]["schemas"])
    ids = [operation["operationId"] for item in schema["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))


def test_the_example_of_a_job_is_one() -> None:
    assert JobBody.model_validate(JOB).steps[1].progress is not None


def test_examples_of_distill_run_as_they_stand(client: TestClient) -> None:
    body = client.get("/openapi.json").json()["paths"]["/distill"]["post"]["requestBody"]["content"]["application/json"]
    assert next(iter(body["examples"].values()))["value"] == {"preset": "smoke"}
    for name, example in body["examples"].items():
        assert client.post("/distill", json=example["value"]).status_code == 202, name


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere(client: TestClient, path: str) -> None:
    page = client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    links = re.findall(r'(?:src|href)="([^"#]+)', page.text)
    assert len(links) >= 3
    for link in links:
        assert "//" not in link
        assert client.get(f"/{link}").status_code == 200, link


def test_catalogue(client: TestClient) -> None:
    entries = {entry["name"]: entry for entry in client.get("/methods").json()["data"]}
    methods = {"mkdt", "mkdt_plus", "dino_tm", "random", "k_means", "high_loss"}
    assert methods | {"dino", "barlow_twins", "simclr", "given"} == set(entries)
    assert entries["mkdt"]["paper"] == "https://arxiv.org/abs/2410.02116"
    assert entries["mkdt"]["fields"]["properties"]["inner_steps"]["maximum"] == 10_000
    assert all(entry["summary"] for entry in entries.values())
    presets = {preset["name"]: preset["spec"] for preset in client.get("/presets").json()["data"]}
    assert presets["smoke"]["teacher"]["backbone"]["name"] == "convnet"


def test_service_status(client: TestClient) -> None:
    assert client.get("/healthz").text == "ok"
    assert client.get("/version").json()["version"]
    client.get("/jobs/job_nosuch")
    client.post("/distill", json={"preset": "smoke"})
    client.request("MADEUP", "/somewhere")
    told = client.get("/metrics").text
    assert 'potstill_http_requests_total{method="other",route="unmatched",status="404"} 1.0' in told
    assert 'potstill_jobs_posted_total{kind="distill"} 1.0' in told
    assert 'potstill_http_requests_total{method="GET",route="/jobs/{job_id}",status="404"} 1.0' in told


def test_readyz_says_which_part_fails(client: TestClient, settings: Settings) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert [error["field"] for error in answer.json()["errors"]] == ["redis"]
    assert answer.headers["retry-after"]
    shutil.rmtree(settings.store)
    Path(settings.store).write_text("in the way")
    assert [error["field"] for error in client.get("/readyz").json()["errors"]] == ["store", "redis"]


def test_refuses_to_start_on_another_schema(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WrongRevision), TestClient(create_app(Settings(home=tmp_path))):
        pass
    assert "potstill migrate" in caplog.text
