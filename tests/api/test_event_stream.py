"""Events as pages and as a stream; curves."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from api.event_stream import KEEPALIVE_SECONDS
from jobs import views
from jobs.settings import Settings
from tests.api.fakes import FakeWorker

ROOT = Path(__file__).parents[2]
STREAM = {"Accept": "text/event-stream"}


def _events(text: str) -> list[dict[str, Any]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    fields = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]
    return [{**one, "data": json.loads(one["data"])} for one in fields]


def test_pages(gallery: tuple[TestClient, dict[str, Any]]) -> None:
    client, distilled = gallery
    path = distilled["links"]["events"]
    whole = client.get(path).json()["data"]
    assert len(whole) > 10
    seen, cursor = [], 0
    while True:
        page = client.get(f"{path}?limit=7&cursor={cursor}").json()
        seen += page["data"]
        if not page["has_more"]:
            break
        cursor = page["next_cursor"]
    assert seen == whole
    assert [one["id"] for one in whole] == sorted({one["id"] for one in whole})


def test_stream_of_a_finished_job_ends_and_resumes(gallery: tuple[TestClient, dict[str, Any]]) -> None:
    client, distilled = gallery
    path = distilled["links"]["events"]
    answer = client.get(path, headers=STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = _events(answer.text)
    recorded = [int(one["id"]) for one in told if "id" in one]
    assert recorded == [one["id"] for one in client.get(path).json()["data"]]
    assert told[-1]["event"] == "end"
    assert told[-1]["data"]["state"] == "succeeded"
    middle = recorded[len(recorded) // 2]
    rest = _events(client.get(path, headers={**STREAM, "Last-Event-ID": str(middle)}).text)
    assert [int(one["id"]) for one in rest if "id" in one] == [one for one in recorded if one > middle]
    assert client.get(path, headers={**STREAM, "Last-Event-ID": str(recorded[-1])}).status_code == 204


def test_stream_follows_a_job_to_its_end(client: TestClient, worker: FakeWorker) -> None:
    job = client.post("/distill", json={"preset": "smoke"}).json()
    first = worker.steps(job["id"], "ready")[0]

    def work() -> None:
        time.sleep(0.7)
        attempt = worker.claim(first.id)
        worker.say(first.id, attempt, {"type": "progress", "done": 1, "total": 4, "unit": "images", "note": ""})
        time.sleep(0.7)
        worker.succeed(first, attempt)
        worker.finish(job["id"])

    thread = threading.Thread(target=work)
    thread.start()
    told = _events(client.get(job["links"]["events"], headers=STREAM).text)
    thread.join()
    progress = [one["data"] for one in told if one["event"] == "progress"]
    assert progress[0]["state"] == "queued"
    assert "running" in [one["state"] for one in progress]
    assert told[-1]["event"] == "end"
    assert told[-1]["data"]["state"] == "succeeded"


def test_an_event_is_told_at_once_however_many_watch(client: TestClient, worker: FakeWorker) -> None:
    app: Any = client.app
    app.state.service.looks.pace.again(1000.0)  # as if thousands did: without news, a stream would look again after `KEEPALIVE_SECONDS`
    job = client.post("/distill", json={"preset": "smoke"}).json()
    seen: list[float] = []

    def watch() -> None:
        client.get(job["links"]["events"], headers=STREAM)
        seen.append(time.monotonic())

    thread = threading.Thread(target=watch)
    thread.start()
    deadline = time.monotonic() + 20
    while not app.state.service.tail.listeners:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    worker.finish(job["id"])
    ended = time.monotonic()
    thread.join()
    assert seen[0] - ended < KEEPALIVE_SECONDS / 2


def test_a_stream_outlasts_a_database_that_is_away(client: TestClient, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    job = client.post("/distill", json={"preset": "smoke"}).json()
    some, looks = views.some, []

    def sometimes(*asked: Any) -> Any:
        looks.append(asked)
        if len(looks) in (2, 4):  # the first is the route's own
            raise OperationalError("SELECT", {}, Exception("connection refused"))
        if len(looks) == 5:
            worker.finish(job["id"])
        return some(*asked)

    monkeypatch.setattr("api.event_stream.AWAY_SECONDS", 0.01)
    monkeypatch.setattr("jobs.views.some", sometimes)
    told = _events(client.get(job["links"]["events"], headers=STREAM).text)
    recorded = [int(one["id"]) for one in told if "id" in one]
    assert len(looks) >= 5
    assert recorded == [one["id"] for one in client.get(job["links"]["events"]).json()["data"]]
    assert told[-1]["event"] == "end"


def test_curves_are_thinned_and_chosen(client: TestClient, worker: FakeWorker) -> None:
    job = client.post("/distill", json={"preset": "smoke"}).json()
    first = worker.steps(job["id"], "ready")[0]
    attempt = worker.claim(first.id)
    points = [{"type": "metric", "name": "loss", "x": float(x), "value": 1.0 / (x + 1)} for x in range(100)]
    worker.say(first.id, attempt, *points, {"type": "metric", "name": "lr", "x": 0.0, "value": 0.1})
    both = client.get(job["links"]["metrics"]).json()["data"]
    assert {(one["name"], len(one["points"])) for one in both} == {("loss", 100), ("lr", 1)}
    (loss,) = client.get(f"{job['links']['metrics']}?names=loss&max_points=10").json()["data"]
    assert len(loss["points"]) <= 10
    assert loss["points"][0] == [0.0, 1.0]
    assert loss["points"][-1] == [99.0, 0.01]


def test_open_stream_does_not_hold_up_a_shutdown(settings: Settings, tmp_path: Path) -> None:
    """A real server, a real signal: the stream ends, and so does the process, without a word of complaint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "POTSTILL_HOME": str(settings.home)}
    command = [sys.executable, "-m", "uvicorn", "api.app:create_app", "--factory", "--port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen(command, env=environment, cwd=ROOT, stderr=out, stdout=out) as server:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                _until_up(client)
                job = client.post("/distill", json={"preset": "smoke"}).json()
                with client.stream("GET", job["links"]["events"], headers=STREAM) as answer:
                    lines = answer.iter_lines()
                    assert next(lines) == "event: job_queued"
                    server.send_signal(signal.SIGTERM)
                    assert "event: end" not in list(lines)
            server.wait(10)
        finally:
            server.kill()
    assert "Traceback" not in log.read_text()
    assert "Application shutdown complete" in log.read_text()


def _until_up(client: httpx.Client) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            assert client.get("/healthz").text == "ok"
            return
        except httpx.ConnectError:
            assert time.monotonic() < deadline, "the server does not come up"
            time.sleep(0.1)
