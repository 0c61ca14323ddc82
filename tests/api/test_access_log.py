"""What the served API writes: one line a request, with the ids that lead on, and nothing secret."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.worker.service import until

CRASHING = """\
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from api.app import create_app


def make() -> FastAPI:
    app = create_app()

    @app.get("/crash")
    def crash() -> None:
        raise RuntimeError("first\\nsecond")

    @app.get("/late")
    async def late() -> StreamingResponse:
        async def body():
            yield b"some"
            raise RuntimeError("too late")

        return StreamingResponse(body())

    return app
"""


@dataclass
class Served:
    """An API process, as `uvicorn` starts it but for two routes that crash, and its output."""

    client: httpx.Client
    log: Path

    def lines(self, message: str, **fields: object) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log.read_text().splitlines()]  # each line is JSON, the server's own too
        return [line for line in found if line["message"] == message and fields.items() <= line.items()]

    def line(self, message: str, **fields: object) -> dict[str, Any]:
        (line,) = until(lambda: self.lines(message, **fields), 10)
        return dict(line)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, sqlite_file: Path) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served")
    (home / "potstill.db").write_bytes(sqlite_file.read_bytes())
    socket, log = str(home / "s"), home / "api.log"
    env = {name: value for name, value in os.environ.items() if not name.startswith("POTSTILL_")}
    env |= {"POTSTILL_HOME": str(home), "POTSTILL_LOG_JSON": "true", "POTSTILL_REDIS_URL": "redis://:hunter2hunter2@127.0.0.1:1/0"}
    (home / "crashing.py").write_text(CRASHING)
    command = [sys.executable, "-m", "uvicorn", "crashing:make", "--factory", "--app-dir", str(home), "--uds", socket]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out)
    until(Path(socket).exists, 60)
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=socket, limits=httpx.Limits(max_keepalive_connections=0)), base_url="http://api", timeout=60
    ) as client:
        yield Served(client, log)
    process.terminate()
    process.wait(20)


def test_a_post_is_one_line_that_names_the_job_and_the_job_names_the_request(served: Served) -> None:
    answer = served.client.post("/distill?dry_run=false", json={"preset": "smoke"}, headers={"X-Request-ID": "mine-1"})
    job_id = answer.json()["id"]
    line = served.line("answered", request_id="mine-1")
    assert (line["job_id"], line["method"], line["route"], line["path"], line["status"]) == (job_id, "POST", "/distill", "/distill", 202)
    assert 0 < line["seconds"] < 60
    (queued,) = [one for one in served.client.get(f"/jobs/{job_id}/events").json()["data"] if one["type"] == "job_queued"]
    assert queued["data"]["request_id"] == "mine-1"


def test_requests_of_a_job_carry_its_id_and_strangers_paths_do_no_harm(served: Served) -> None:
    served.client.get("/jobs/job_nosuch", headers={"X-Request-ID": "mine-2"})
    line = served.line("answered", request_id="mine-2")
    assert (line["job_id"], line["route"], line["status"]) == ("job_nosuch", "/jobs/{job_id}", 404)
    served.client.get("/a%0A%7B%22message%22:%22forged%22%7D?X-Amz-Signature=hunter2", headers={"X-Request-ID": "mine-3"})
    line = served.line("answered", request_id="mine-3")
    assert line["path"] == '/a\n{"message":"forged"}'
    assert "route" not in line


def test_a_crash_is_one_line_with_its_traceback_and_the_request_id_beside_the_answer(served: Served) -> None:
    answer = served.client.get("/crash", headers={"X-Request-ID": "mine-4"})
    assert (answer.status_code, answer.json()["request_id"]) == (500, "mine-4")
    line = served.line("unexpected error", request_id="mine-4")
    assert (line["level"], line["path"]) == ("error", "/crash")
    assert line["trace"].endswith("RuntimeError: first\nsecond")
    assert served.line("answered", request_id="mine-4")["status"] == 500
    with pytest.raises(httpx.HTTPError):
        served.client.get("/late", headers={"X-Request-ID": "mine-5"})
    assert served.line("unexpected error", request_id="mine-5")["trace"].endswith("too late")
    assert served.line("answered", request_id="mine-5")["status"] == 200
    assert sum("Traceback" in line for line in served.log.read_text().splitlines()) == 2, "the server tells no crash again"


def test_probes_that_succeed_are_not_told_and_no_password_is(served: Served) -> None:
    for path in ("/healthz", "/metrics", "/readyz"):
        served.client.get(path)
    assert served.line("answered", path="/readyz")["status"] == 503
    assert served.lines("answered", path="/healthz") == served.lines("answered", path="/metrics") == []
    assert "hunter2" not in served.log.read_text()
    loggers = {line["logger"] for line in map(json.loads, served.log.read_text().splitlines())}
    assert "uvicorn.error" in loggers, "the server's own lines have the same shape"
    assert "uvicorn.access" not in loggers


def test_a_stream_is_counted_while_it_is_open_and_told_of_when_it_ends(served: Served) -> None:
    def streams() -> float:
        return float(
            next(
                line for line in served.client.get("/metrics").text.splitlines() if line.startswith("potstill_event_streams_open ")
            ).split()[1]
        )

    job_id = served.client.post("/distill", json={"preset": "smoke", "seed": 3}).json()["id"]
    headers = {"Accept": "text/event-stream", "X-Request-ID": "mine-6"}
    with served.client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as events:
        lines = events.iter_lines()
        assert next(lines)
        assert streams() == 1
        assert served.lines("answered", request_id="mine-6") == []
    until(lambda: streams() == 0, 20)
    assert served.line("answered", request_id="mine-6")["job_id"] == job_id
