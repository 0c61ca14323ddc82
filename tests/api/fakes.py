"""A worker that finishes steps with made-up files, so that the API can be tested without an engine."""

from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient

from jobs import bodies, claims, database, records, views
from jobs.settings import Settings
from jobs.store import open_store

Refused = Callable[..., dict[str, Any]]

FILES: dict[str, dict[str, tuple[str, str]]] = {  # kind of step -> file -> kind of artifact, media type
    "dataset": {"dataset.safetensors": ("dataset", "application/octet-stream"), "preview.png": ("preview", "image/png")},
    "distill": {"synthetic.safetensors": ("synthetic_set", "application/octet-stream"), "history.json": ("history", "application/json")},
    "export": {
        "synthetic.pt": ("export", "application/octet-stream"),
        "synthetic-png.zip": ("export", "application/zip"),
        "synthetic.parquet": ("export", "application/vnd.apache.parquet"),
        "synthetic-mtt.zip": ("export", "application/zip"),
        "preview.png": ("preview", "image/png"),
    },
    "figures": {
        "losses.png": ("plot", "image/png"),
        "losses.svg": ("plot", "image/svg+xml"),
        "losses.json": ("plot", "application/json"),
    },
    "observe": {
        "observations.json": ("observations", "application/json"),
        "motion.png": ("plot", "image/png"),
    },
    "report": {
        "report.json": ("report", "application/json"),
        "report.md": ("report", "text/markdown"),
        "comparison.png": ("plot", "image/png"),
    },
    "ranking": {
        "ranking.json": ("plot", "application/json"),
        "ranking.md": ("report", "text/markdown"),
        "ranking.png": ("plot", "image/png"),
    },
}


class FakeWorker:
    """Finishes steps as a worker would, with small made-up files whose bytes tell where they are from."""

    def __init__(self, settings: Settings) -> None:
        engine = database.connect(settings)
        self.sessions, self.readers = database.sessions(engine), database.readers(engine)
        self.store, self.scratch = open_store(settings), settings.scratch
        self.scratch.mkdir(parents=True)
        self.dispose = engine.dispose

    def steps(self, job_id: str, state: str) -> list[bodies.StepView]:
        with self.readers() as session:
            return [step for step in views.job(session, job_id).steps if step.state == state]

    def claim(self, step_id: str) -> int:
        claim = database.transact(self.sessions, lambda s: claims.claim(s, step_id, "fake"))
        assert claim is not None
        return claim.attempt

    def say(self, step_id: str, attempt: int, *events: dict[str, Any]) -> None:
        database.transact(self.sessions, lambda s: records.record(s, step_id, attempt, events))

    def succeed(self, step: bodies.StepView, attempt: int) -> None:
        made = [self._file(step, name, *kinds) for name, kinds in FILES.get(step.kind, {}).items()]
        summary = {"num_images": 20, "image_shape": [1, 8, 8], "target_dim": 5, "learned_lr": 0.1} if step.name == "distill" else {}
        database.transact(self.sessions, lambda s: claims.succeed(s, step.id, attempt, made, summary))

    def fail(self, step_id: str, attempt: int) -> None:
        hint = "lower method.lr_images"
        database.transact(self.sessions, lambda s: claims.fail(s, step_id, attempt, "diverged", "the images grew without bound", hint))

    def finish(self, job_id: str) -> None:
        while ready := self.steps(job_id, "ready"):
            for step in ready:
                self.succeed(step, self.claim(step.id))

    def _file(self, step: bodies.StepView, name: str, kind: str, media_type: str) -> claims.NewArtifact:
        path = self.scratch / name
        path.write_bytes(b'{"arms": {}}' if name in ("report.json", "ranking.json") else f"{name} of {step.name}".encode() * 3)
        blob = self.store.put(path)
        return claims.NewArtifact(name, kind, media_type, blob.sha256, blob.size)


def distil(client: TestClient, worker: FakeWorker) -> dict[str, Any]:
    """Post the smallest distillation and finish it: the job as it then is."""
    job = client.post("/distill", json={"preset": "smoke"}).json()
    worker.finish(job["id"])
    done: dict[str, Any] = client.get(f"/jobs/{job['id']}").json()
    assert done["state"] == "succeeded"
    return done
