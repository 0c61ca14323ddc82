"""What Prometheus is told: of this process, of unfinished work, and of what has happened; also while parts are away."""

import asyncio
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from api.measures import Measures
from api.readiness import Readiness
from jobs.database import connect_to_watch
from jobs.settings import Settings
from jobs.store import FolderStore
from tests.api.fakes import FakeWorker, distil
from tests.conftest import Database


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {(s.name, frozenset(s.labels.items())): s.value for family in text_string_to_metric_families(text) for s in family.samples}


class Told:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.text, self._samples = text, samples(text)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._samples.get((f"potstill_{name}", frozenset(labels.items())))


def scrape(client: TestClient) -> Told:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return Told(answer.text)


@pytest.fixture(autouse=True)
def _never_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.measures.FRESH", -1.0)
    monkeypatch.setattr("api.measures.FRESH_SIZE", -1.0)


def test_a_job_from_post_to_end(database: Database, redis_url: str) -> None:
    settings = database.settings.model_copy(update={"redis_url": redis_url, "store_quota_bytes": 10**9})
    worker = FakeWorker(settings)
    with TestClient(create_app(settings)) as client:
        before = scrape(client)
        assert [before("up", part=part) for part in ("database", "store", "redis")] == [1, 1, 1]
        assert before("jobs_posted_total", kind="distill") == before("attempts_failed_total", kind="distill", code="diverged") == 0
        failing = client.post("/distill", json={"preset": "smoke", "seed": 5}).json()
        posted = scrape(client)
        assert posted("jobs", kind="distill", state="queued") == 1
        (ready,) = worker.steps(failing["id"], "ready")
        assert (
            posted("queue_ready_steps", queue="gpu") or posted("queue_ready_steps", queue="cpu") or posted("queue_ready_steps", queue="io")
        )
        assert posted("doorbells_unsent") == 1
        attempt = worker.claim(ready.id)
        running = scrape(client)
        assert running("jobs", kind="distill", state="running") == 1
        assert sum(running(f"queue_{what}", queue="gpu") or 0 for what in ("ready_steps", "workers", "oldest_ready_seconds")) == 0
        worker.fail(ready.id, attempt)
        done = distil(client, worker)
        distilled = sum(step["kind"] == "distill" for step in done["steps"])
        ended = scrape(client)
        assert ended("attempts_failed_total", kind=ready.kind, code="diverged") == 1
        assert ended("attempts_retried_total", kind=ready.kind) == 0
        assert ended("steps_ended_total", kind=ready.kind, state="failed") == 1
        assert ended("steps_ended_total", kind="distill", state="succeeded") == ended("step_seconds_count", kind="distill") == distilled
        assert ended("jobs_posted_total", kind="distill") == 2
        assert (
            ended("jobs_ended_total", kind="distill", state="failed") == ended("jobs_ended_total", kind="distill", state="succeeded") == 1
        )
        assert ended("job_seconds_count", kind="distill") == 1
        assert ended("jobs", kind="distill", state="running") is None
        assert (ended("store_used_bytes") or 0) > 0
        assert (ended("store_free_bytes") or 0) > 0
        assert ended("store_quota_bytes") == 10**9
        assert scrape(client)("jobs_posted_total", kind="distill") == 2, "a second look counts nothing again"
        assert not re.search(r"(job|step|art|syn)_[0-9a-z]{26}", ended.text), "no series for each job"
    with TestClient(create_app(settings)) as client:
        assert scrape(client)("jobs_posted_total", kind="distill") == 0, "a counter begins with its process"
    worker.dispose()


def test_what_the_process_knows_is_told_while_the_database_and_redis_are_away(tmp_path: Path) -> None:
    away = Settings(home=tmp_path, database_url="postgresql://me:hunter2@127.0.0.1:1/x", redis_url="redis://127.0.0.1:1/0")
    engine, store, registry = connect_to_watch(away), FolderStore(tmp_path / "blobs"), CollectorRegistry()
    measures = Measures(registry, Readiness(away, store, engine), store, engine, engine)
    told = Told(asyncio.run(measures.exposition()).decode())
    assert [told("up", part=part) for part in ("database", "store", "redis")] == [0, 1, 0]
    assert told("jobs_posted_total", kind="distill") == 0
    assert told("store_free_bytes") is not None
    assert "potstill_jobs{" not in told.text, "what was true a while ago is not told as if it were now"
    assert "potstill_broker_messages{" not in told.text
    assert "hunter2" not in told.text


def test_scrapes_within_seconds_count_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.measures.FRESH", 60.0)
    scrape(client)
    client.post("/distill", json={"preset": "smoke"})
    soon = scrape(client)
    assert soon("jobs", kind="distill", state="queued") is None
    assert soon("jobs_posted_total", kind="distill") == 1, "events are read on at every scrape"
    monkeypatch.setattr("api.measures.FRESH", -1.0)
    assert scrape(client)("jobs", kind="distill", state="queued") == 1
