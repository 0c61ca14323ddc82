"""The whole way through the API on each database that it runs on."""

from fastapi.testclient import TestClient

from api.app import create_app
from tests.api.fakes import FakeWorker, Refused, distil
from tests.conftest import Database

STREAM = {"Accept": "text/event-stream"}


def test_from_post_to_download(database: Database, redis_url: str, refused: Refused) -> None:
    settings = database.settings.model_copy(update={"redis_url": redis_url})
    worker = FakeWorker(settings)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        assert client.get("/readyz").json() == {"ready": True, "parts": {"database": "ok", "store": "ok", "redis": "ok"}, "warnings": []}
        done = distil(client, worker)
        assert client.get(done["links"]["events"], headers=STREAM).text.count("event: end") == 1
        synthetic = client.get(done["links"]["synthetic_set"]).json()
        head = client.head(synthetic["links"]["parquet"])
        part = client.get(synthetic["links"]["parquet"], headers={"Range": "bytes=-9", "If-Range": head.headers["etag"]})
        assert (part.status_code, len(part.content)) == (206, 9)
        again = client.post("/distill", json={"preset": "smoke"}, headers={"Idempotency-Key": "k"}).json()
        assert all(step["cached"] for step in again["steps"])
        page = client.get("/jobs?limit=1").json()
        assert page["data"][0]["id"] == again["id"]
        assert client.get(f"/jobs?limit=1&cursor={page['next_cursor']}").json()["data"][0]["id"] == done["id"]
        refused(client.post("/distill", json={"preset": "smoke", "seed": 1}, headers={"Idempotency-Key": "k"}), 409, "idempotency_conflict")
        refused(client.post("/distill", json={"preset": "smoke", "dataset": "a\0b"}), 422, "invalid_request")
        refused(client.post("/distill", json={"preset": "smoke", "labels": ["a\0b"]}), 422, "invalid_request")
        refused(client.get("/jobs?label=a%00b"), 422, "invalid_request")
        refused(client.get("/datasets/a%00b"), 422, "invalid_request")
    worker.dispose()
