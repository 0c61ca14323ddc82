"""Making room over HTTP: what goes, what is pinned, and how a file that is gone is answered."""

from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from jobs import collect, condemned, database, verify
from jobs.models import Condemned, Job, Step
from jobs.settings import Settings
from jobs.store import open_store
from tests.api.fakes import FakeWorker, Refused
from tests.api.test_file_transfer import checkpoint
from tests.jobs.harness import harm


def grow_old(worker: FakeWorker, days: float) -> None:
    with worker.sessions.begin() as session:
        for row in (*session.scalars(select(Step)), *session.scalars(select(Job)), *session.scalars(select(Condemned))):
            for column in {"created_at", "finished_at", "at"} & {*row.__table__.columns.keys()}:
                setattr(row, column, getattr(row, column) - timedelta(days=days))


def test_what_was_not_used_is_told_then_removed_then_gone(
    client: TestClient, worker: FakeWorker, distilled: dict[str, Any], refused: Refused
) -> None:
    files = {one["kind"]: one for one in client.get(distilled["links"]["artifacts"]).json()["data"]}
    grow_old(worker, 40)
    assert client.post("/gc").json()["unneeded"] == [], "nothing has a time, unless somebody says so"
    told = client.post("/gc?dry_run=true&unused_days=30").json()
    assert [(share["kind"], share["files"]) for share in told["unneeded"]] == [("dataset", 2)]
    assert (told["files"], told["bytes"]) == (2, told["unneeded"][0]["bytes"])
    assert told["unneeded"][0]["oldest"].endswith("Z")
    assert client.get(files["dataset"]["links"]["content"]).status_code == 200
    done = client.post("/gc?unused_days=30").json()
    assert done["unneeded"] == told["unneeded"]
    assert (done["dry_run"], done["condemned_files"], done["deleted_files"]) == (False, 2, 0)

    problem = refused(client.get(files["dataset"]["links"]["content"]), 410, "gone")
    assert "'dataset.safetensors' was removed on" in problem["detail"]
    assert "computed again" in problem["detail"]
    refused(client.get("/datasets/digits-train/preview.png"), 410, "gone")
    assert client.head(files["dataset"]["links"]["content"]).status_code == 410
    assert client.get(files["dataset"]["links"]["self"]).json()["gone_at"]
    assert client.get(files["synthetic_set"]["links"]["content"]).status_code == 200

    grow_old(worker, 1)
    assert client.post("/gc?dry_run=true").json()["deleted_files"] == 2
    assert worker.store.exists(files["dataset"]["sha256"])
    assert client.post("/gc").json()["deleted_files"] == 2
    assert not worker.store.exists(files["dataset"]["sha256"])
    again = client.post("/distill", json={"preset": "smoke", "num_images": 10}).json()
    worker.finish(again["id"])
    assert client.get(f"/jobs/{again['id']}").json()["state"] == "succeeded"
    assert client.get("/datasets/digits-train/preview.png").status_code == 200


def test_a_pinned_job_keeps_its_files(client: TestClient, worker: FakeWorker, distilled: dict[str, Any], refused: Refused) -> None:
    own = distilled["links"]["self"]
    assert distilled["pinned"] is False
    assert client.patch(own, json={"pinned": True}).json()["pinned"] is True
    assert client.patch(own, json={"labels": ["kept"]}).json()["pinned"] is True
    grow_old(worker, 40)
    assert client.post("/gc?unused_days=30").json()["files"] == 0
    assert client.patch(own, json={"pinned": False}).json()["pinned"] is False
    assert client.post("/gc?unused_days=30").json()["files"] == 2
    refused(client.patch(own, json={"pinned": "perhaps"}), 422, "invalid_request")
    refused(client.post("/gc?unused_days=-1"), 422, "invalid_request")
    refused(client.post("/gc?unused=1"), 422, "invalid_request")


def test_a_long_work_is_done_in_parts(
    client: TestClient, worker: FakeWorker, distilled: dict[str, Any], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = client.get(distilled["links"]["artifacts"]).json()["data"]
    names = sorted({one["sha256"] for one in files})
    worker.store.remove(names[:1])
    harm(worker.store, names[1], b"damaged")
    monkeypatch.setattr(verify, "MANY", 1)
    monkeypatch.setattr(collect, "within", lambda seconds, walk: next(walk, None))
    monkeypatch.setattr(verify, "within", lambda seconds, walk: next(walk, None))

    def parts(path: str) -> list[dict[str, Any]]:
        told = [client.post(path).json()]
        while told[-1]["has_more"]:
            told.append(client.post(path, params={"cursor": told[-1]["next_cursor"]}).json())
        return told

    told = parts("/verify")
    assert len(told) > len(names) - 1
    assert sum(one["files"] for one in told) == len(names) - 1
    (missing,), (damaged,) = ([file for one in told for file in one[kind]] for kind in ("missing", "damaged"))
    assert [missing["sha256"], damaged["sha256"]] == names[:2]
    by = next(one for one in files if one["sha256"] == names[1])
    assert {"id": by["id"], "name": by["name"], "kind": by["kind"], "step": by["step"], "job_id": distilled["id"]} in damaged["named_by"]
    assert [len(parts("/gc")), len(parts("/gc?dry_run=true"))] == [len({name[:2] for name in names[2:]}) + 1] * 2
    refused(client.post("/verify?cursor=../x"), 422, "invalid_request")
    refused(client.post("/gc?cursor=G"), 422, "invalid_request")


def test_an_upload_that_was_condemned_from_before_is_spared(client: TestClient, settings: Settings, worker: FakeWorker) -> None:
    content = checkpoint()
    path = settings.home / "again"
    path.write_bytes(content)
    store = open_store(settings)
    blob = store.put(path)  # by a request that was killed
    database.transact(worker.sessions, lambda s: condemned.condemn(s, [blob]))
    sent = client.post("/artifacts", files={"file": ("teacher.safetensors", content)})
    assert sent.status_code == 201, sent.text
    grow_old(worker, 1)
    assert condemned.remove(worker.sessions, store) == condemned.Amount()
    assert client.get(sent.json()["links"]["content"]).content == content


def test_an_upload_whose_file_is_being_removed_is_asked_to_come_again(
    client: TestClient, settings: Settings, worker: FakeWorker, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = checkpoint()
    path = settings.home / "again"
    path.write_bytes(content)
    store = open_store(settings)
    blob = store.put(path)
    database.transact(worker.sessions, lambda s: condemned.condemn(s, [blob]))
    grow_old(worker, 1)
    database.transact(worker.sessions, condemned.doom)
    files = {"file": ("teacher.safetensors", content)}
    assert refused(client.post("/artifacts", files=files), 503, "not_ready")["detail"].count("is being removed") == 1
    monkeypatch.setattr(condemned, "STUCK", timedelta())
    assert client.post("/artifacts", files=files).status_code == 201
