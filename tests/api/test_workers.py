"""Workers and queues over HTTP."""

from fastapi.testclient import TestClient

from jobs.database import transact
from jobs.workers import Presence, report
from tests.api.fakes import FakeWorker


def test_workers_and_queues_are_listed(client: TestClient, worker: FakeWorker) -> None:
    assert client.get("/workers").json() == {"data": []}
    own = Presence("one/7", "host", 7, ("io",), "e", "1.0")
    transact(worker.sessions, lambda s: report(s, own, alive_seconds=60))
    (listed,) = client.get("/workers").json()["data"]
    assert (listed["name"], listed["state"], listed["device"], listed["step"]) == ("one/7", "idle", None, None)
    job = client.post("/distill", json={"preset": "smoke"}).json()
    gpu, cpu, io = client.get("/queue").json()["data"]
    assert (gpu["name"], gpu["ready"], gpu["workers"]) == ("gpu", 0, [])
    assert (cpu["name"], cpu["ready"], cpu["workers"]) == ("cpu", 0, [])
    assert (io["name"], io["ready"], io["running"], io["workers"]) == ("io", 1, 0, ["one/7"])
    assert "another version" in client.get(job["links"]["self"]).json()["phase"], "the worker's engine is `e`"
