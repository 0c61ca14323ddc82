from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import obstore
from sqlalchemy import select, update

from ddcore.plan import Plan
from ddcore.specs import DistillSpec
from jobs import views
from jobs.bodies import JobView
from jobs.claims import Claim, NewArtifact, claim, succeed
from jobs.models import Artifact, Doorbell, Job, JobStep, Step
from jobs.object_store import ObjectStore
from jobs.store import FolderStore, Store, blob_key
from jobs.submit import submit
from tests.conftest import Database

T = TypeVar("T")

SMOKE = DistillSpec(preset="smoke")
MEANING = {"dataset_id": "ds_digits-train", "datasets": {"digits-train": "ds_digits-train"}, "checkpoint": None}


def plan(*edges: str, seed: int = 0) -> Plan:
    """`plan("a", "b<a", "distill<a,b")`: steps with their inputs; equal names make equal keys in all plans of one seed."""
    made = Plan()
    for edge in edges:
        name, _, inputs = edge.partition("<")
        roles = {"input": inputs.split(",")} if inputs else {}
        made.add(name, "distill" if name == "distill" else "experts", {"name": name, "seed": seed}, roles)
    return made


@dataclass
class World:
    """A database and a store, and what a worker does to them."""

    database: Database
    store: FolderStore
    folder: Path

    def submit(self, made: Plan, **options: Any) -> str:
        options = {"resolved": MEANING, "wanted": [name for name in made.steps if name == "distill"]} | options
        return self.database.write(lambda s: submit(s, self.store, "distill", SMOKE.model_dump(mode="json"), made, **options).id)

    def job(self, job_id: str) -> JobView:
        return self.database.read(lambda s: views.job(s, job_id))

    def step(self, job_id: str, name: str) -> Step:
        query = select(Step).join(JobStep, JobStep.step_id == Step.id).where(JobStep.job_id == job_id, JobStep.name == name)
        return self.database.read(lambda s: s.scalars(query).one())

    def states(self, job_id: str) -> dict[str, str]:
        return {step.name: step.state for step in self.job(job_id).steps}

    def claim(self, job_id: str, name: str, worker: str = "w1") -> Claim:
        step_id = self.step(job_id, name).id
        got = self.database.write(lambda s: claim(s, step_id, worker))
        assert got is not None
        return got

    def file(self, content: str, name: str = "out.bin", kind: str = "trajectories") -> NewArtifact:
        path = self.folder / "out"
        path.write_text(content)
        blob = self.store.put(path)
        return NewArtifact(name, kind, "application/octet-stream", blob.sha256, blob.size)

    def finish(self, held: Claim, **summary: Any) -> None:
        file = self.file(f"made by {held.step_id}")
        self.database.write(lambda s: succeed(s, held.step_id, held.attempt, [file], summary))

    def run(self, job_id: str, *names: str) -> None:
        for name in names:
            self.finish(self.claim(job_id, name))

    def finish_job(self, job_id: str) -> JobView:
        """Run whatever is ready until the job ends."""
        while ready := [step.name for step in self.job(job_id).steps if step.state == "ready"]:
            self.run(job_id, ready[0])
        return self.job(job_id)

    def lose_files(self, job_id: str, name: str) -> None:
        step_id = self.step(job_id, name).id
        for sha256 in self.database.read(lambda s: list(s.scalars(select(Artifact.sha256).where(Artifact.step_id == step_id)))):
            self.store.here(sha256).unlink()

    def pass_time(self, step_id: str, seconds: float) -> None:
        """As if the step had become ready, been rung and been claimed so much earlier."""
        with self.database.sessions.begin() as session:
            step = session.get_one(Step, step_id)
            for column in ("ready_at", "rung_at", "lease_until"):
                if (moment := getattr(step, column)) is not None:
                    setattr(step, column, moment - timedelta(seconds=seconds))

    def doorbells(self) -> list[str]:
        return self.database.read(lambda s: list(s.scalars(select(Doorbell.step_id).order_by(Doorbell.id))))

    def set_job(self, job_id: str, state: str) -> None:
        self.database.write(lambda s: s.execute(update(Job).where(Job.id == job_id).values(state=state)))


def harm(store: Store, sha256: str, content: bytes) -> None:
    """Put other bytes into a stored file."""
    if isinstance(store, ObjectStore):
        obstore.put(store.bucket, blob_key(sha256), content)
    elif (path := store.here(sha256)) is not None:
        path.chmod(0o644)
        path.write_bytes(content)


def at_once(works: Sequence[Callable[[], T]]) -> list[T]:
    """Run all of them in threads that start together."""
    gate = Barrier(len(works))

    def go(work: Callable[[], T]) -> T:
        gate.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(go, works))
