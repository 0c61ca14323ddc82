"""Files that are damaged, or vanish between being stored and being named, are there again in the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from ddcore.plan import engine_digest
from jobs import claims, condemned, create, views
from jobs.bodies import JobView
from jobs.condemned import HeldTooLongAgo
from jobs.database import sessions, transact
from jobs.models import QUEUES, Artifact, Step
from jobs.settings import Settings
from jobs.store import FolderStore, open_store
from tests.object_server import ObjectServer
from tests.worker.service import post
from worker import runner as module
from worker.runner import _Runner

Run = Callable[[str], JobView]


@pytest.fixture(params=["folder", "s3"])
def there(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """Settings with a store of either sort."""
    if request.param == "folder":
        return settings
    server: ObjectServer = request.getfixturevalue("object_server")
    return server.settings(settings.home, database_url=settings.database_url)


@pytest.fixture
def run(there: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Has real runners run whatever is ready, with an engine that reads its inputs and writes a word."""
    factory = sessions(engine)

    def run_step(kind: str, params: object, inputs: dict[str, list[Path]], out: Path, *_: object) -> dict[str, Any]:
        read = [file.read_text() for folders in inputs.values() for folder in folders for file in folder.iterdir()]
        (out / "out.bin").write_text(f"{kind} of {sorted(read)}")
        return {"kind": kind}

    monkeypatch.setattr(module, "run_step", run_step)
    monkeypatch.setattr(module, "set_deterministic", lambda threads: None)

    def take(queue: str) -> claims.Claim | None:
        return transact(factory, lambda s: claims.take(s, queue, "me", engine_digest()))

    def run(job_id: str) -> JobView:
        while got := [claim for queue in QUEUES if (claim := take(queue)) is not None]:
            for claim in got:
                _Runner(there, factory, claim.step_id, claim.attempt).run()
        with factory() as session:
            return views.job(session, job_id)

    return run


def harm(there: Settings, sha256: str, server: ObjectServer) -> None:
    """Other bytes, as many as before."""
    content = bytes(open_store(there).size(sha256))
    if isinstance(store := open_store(there), FolderStore):
        store.here(sha256).chmod(0o644)
        store.here(sha256).write_bytes(content)
    else:
        httpx.put(server.objects(there)[sha256], content=content).raise_for_status()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_damaged_input_fails_the_job_and_a_retry_makes_it_again(
    there: Settings, engine: Engine, run: Run, object_server: ObjectServer, tmp_path: Path
) -> None:
    first, steps = post(there, engine, num_images=4, method={"name": "random"})
    assert run(first).state == "succeeded"
    dataset = next(step for name, step in steps.items() if name.startswith("dataset"))
    with sessions(engine)() as session:
        sha256 = session.scalars(select(Artifact.sha256).where(Artifact.step_id == dataset)).one()
    harm(there, sha256, object_server)

    (there.scratch / "inputs").rename(tmp_path / "of another machine")
    second, _ = post(there, engine, num_images=5, method={"name": "random"})
    job = run(second)
    assert (job.state, job.error.code if job.error else "") == ("failed", "missing_input")
    assert job.error is not None
    assert "is damaged" in job.error.detail
    assert job.error.hint == "retry the job: what is missing is computed again"
    store = open_store(there)
    assert not store.exists(sha256)
    with sessions(engine)() as session:
        assert session.get_one(Step, dataset).lost_at is not None

    third = transact(sessions(engine), lambda s: create.retry(s, store, second).id)
    job = run(third)
    assert job.state == "succeeded"
    again = next(step for step in job.steps if step.kind == "dataset")
    assert (again.id != dataset, again.cached) == (True, False)
    assert store.verify(sha256)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_is_removed_before_it_is_named_is_stored_again(
    there: Settings, engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, require, late = _Runner._keep, condemned.require, []

    def unlucky(self: _Runner, out: Path) -> list[claims.NewArtifact]:
        kept = keep(self, out)
        self.store.remove([one.sha256 for one in kept])
        return kept

    def too_late(session: Session, held_at: object) -> None:
        late.append(held_at)
        if len(late) == 1:
            raise HeldTooLongAgo
        require(session, held_at)  # type: ignore[arg-type]

    monkeypatch.setattr(_Runner, "_keep", unlucky)
    monkeypatch.setattr(condemned, "require", too_late)
    job_id, steps = post(there, engine, num_images=4, method={"name": "random"})
    assert run(job_id).state == "succeeded"
    assert len(late) == len(set(late)) == len(set(steps.values())) + 1
    with sessions(engine)() as session:
        names = set(session.scalars(select(Artifact.sha256)))
    assert open_store(there).missing(names) == set()
