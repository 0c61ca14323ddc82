"""What a round must leave behind, and in what it differs from the run that nothing disturbed."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.models import Artifact, Event, Job, JobStep, Metric, Step
from jobs.store import open_store
from tests.chaos.stand import HTTP, Stand
from tests.object_server import ObjectServer

File = tuple[str, str]  # the name of a step, and of a file that it left
Point = tuple[float, float | None]  # x and value
SET: File = ("distill", "synthetic.safetensors")


@dataclass
class Facts:
    """What one job left. wrong: what no run may ever leave, in words."""

    state: str = ""
    error: str = ""
    jobs: int = 0  # in the database, apart from those that this one was a retry of
    steps: dict[str, str] = field(default_factory=dict)  # name -> state
    successes: dict[str, int] = field(default_factory=dict)  # name -> events step_succeeded of its row
    artifacts: dict[File, str] = field(default_factory=dict)  # -> sha256
    curves: dict[tuple[str, str], list[Point]] = field(default_factory=dict)  # by step and curve; by x, and none is of time
    downloaded: str = ""  # sha256 of the synthetic set as it came over HTTP
    seconds: dict[str, float] = field(default_factory=dict)  # name -> of the attempt that succeeded
    attempts: int = 0
    failures: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def synthetic_set(self) -> str:
        return self.artifacts.get(SET, "")


def gather(stand: Stand, job_id: str, server: ObjectServer | None = None) -> Facts:
    """All that a job left, read back from database, store and API. server: of the objects, if they are not in a folder."""
    facts = stand.read(lambda session: _rows(session, job_id))
    facts.seconds = stand.took(job_id)
    store = open_store(stand.settings)
    for (step, name), sha256 in facts.artifacts.items():
        if not store.verify(sha256):
            facts.wrong.append(f"the stored file {name} of step {step} is absent or damaged")
    facts.wrong += misnamed(_stored(stand, server))
    if facts.state == "succeeded":
        _download(stand, job_id, facts)
    return facts


def _rows(session: Session, job_id: str) -> Facts:
    job = session.get_one(Job, job_id)
    facts = Facts(job.state, f"{job.error_code}: {job.error_detail}" if job.error_code else "")
    # One whose retry this is has been cancelled on purpose.
    facts.jobs = session.scalar(select(func.count()).select_from(Job).where(Job.id != (job.parent_id or ""))) or 0
    query = select(JobStep.name, Step).join(Step, Step.id == JobStep.step_id).where(JobStep.job_id == job_id)
    for name, step in session.execute(query):
        facts.steps[name] = step.state
        events = Counter(session.scalars(select(Event.type).where(Event.step_id == step.id)))
        facts.successes[name] = events["step_succeeded"]
        facts.attempts += step.attempt
        facts.failures += step.failures
        for file in session.scalars(select(Artifact).where(Artifact.step_id == step.id)):
            facts.artifacts[name, file.name] = file.sha256
        points = select(Metric.name, Metric.x, Metric.value).where(Metric.step_id == step.id).order_by(Metric.name, Metric.x)
        for curve, x, value in session.execute(points):
            facts.curves.setdefault((name, curve), []).append((x, value))
    return facts


def _stored(stand: Stand, server: ObjectServer | None) -> dict[str, bytes]:
    """Every file that stands where whole ones do, by its name."""
    if server is not None:
        return {name: HTTP.get(url).raise_for_status().content for name, url in server.objects(stand.settings).items()}
    return {path.name: path.read_bytes() for path in (Path(stand.settings.store) / "sha256").rglob("*") if path.is_file()}


def _download(stand: Stand, job_id: str, facts: Facts) -> None:
    """The synthetic set and every other file, as anybody gets them."""
    (result,) = stand.get("/synthetic-sets")["data"]
    address = f"{stand.url}/synthetic-sets/{result['id']}/download?format=safetensors"
    facts.downloaded = _sha256(HTTP.get(address, follow_redirects=True).raise_for_status().content)
    listed = stand.get(f"/jobs/{job_id}/artifacts")["data"]
    for one in listed:
        content = HTTP.get(f"{stand.url}/artifacts/{one['id']}/content", follow_redirects=True).raise_for_status().content
        if _sha256(content) != one["sha256"]:
            facts.wrong.append(f"{one['name']} came over HTTP with other bytes than its sha256 says")
    if Counter(one["sha256"] for one in listed) != Counter(facts.artifacts.values()):
        facts.wrong.append(f"the API lists {len(listed)} files, the database {len(facts.artifacts)}")


def compare(facts: Facts, undisturbed: Facts, costs: int = 0) -> list[str]:
    """Everything that is not as it must be; nothing when the round passed. costs: failures that may have counted against steps."""
    said = list(facts.wrong)
    if facts.state != "succeeded":
        return [*said, f"the job is {facts.state}: {facts.error}"]
    if facts.failures > costs:
        said.append(f"counted against the steps are {facts.failures} failures, and may be {costs}")
    if facts.jobs != 1:
        said.append(f"there are {facts.jobs} jobs instead of one")
    for name, state in facts.steps.items():
        if state != "succeeded" or facts.successes.get(name, 0) != 1:
            said.append(f"step {name} is {state}, and has succeeded {facts.successes.get(name, 0)} times")
    said += _differ("steps", facts.steps, undisturbed.steps)
    said += _differ("artifacts", facts.artifacts, undisturbed.artifacts)
    said += _differ("curves", facts.curves, undisturbed.curves)
    if facts.synthetic_set != undisturbed.synthetic_set:
        said.append(f"the synthetic set is {facts.synthetic_set[:12]}, undisturbed {undisturbed.synthetic_set[:12]}")
    if facts.downloaded != facts.synthetic_set:
        said.append(f"the synthetic set was downloaded as {facts.downloaded[:12]}, and is {facts.synthetic_set[:12]}")
    for (step, name), sha256 in facts.artifacts.items():  # of other files: whose bytes hold no time and no path
        other = undisturbed.artifacts.get((step, name), sha256)
        if name.endswith(".safetensors") and (step, name) != SET and sha256 != other:
            said.append(f"{name} of step {step} is {sha256[:12]}, undisturbed {other[:12]}")
    for (step, curve), points in facts.curves.items():
        if unlike := _unlike(points, undisturbed.curves.get((step, curve), points)):
            said.append(f"curve {curve} of step {step} {unlike}")
    return said


def _unlike(points: list[Point], expected: list[Point]) -> str:
    """In what a curve differs from the undisturbed one; nothing if it has its bits."""
    at = [x for x, _ in points]
    if len(at) != len(set(at)):
        return "has a point twice"
    if at != [x for x, _ in expected]:
        return f"has {len(points)} points, undisturbed {len(expected)}, or has them elsewhere"
    differing = [(x, value, other) for (x, value), (_, other) in zip(points, expected, strict=True) if value != other]
    return "is {1} at {0:g}, undisturbed {2}".format(*differing[0]) if differing else ""


def _differ(what: str, found: dict[Any, Any], expected: dict[Any, Any]) -> list[str]:
    """That some are absent, or are too many."""
    said = []
    if absent := expected.keys() - found.keys():
        said.append(f"{what} are missing: {sorted(absent)}")
    if more := found.keys() - expected.keys():
        said.append(f"{what} are there that should not be: {sorted(more)}")
    return said


def misnamed(files: dict[str, bytes]) -> list[str]:
    """Files among whole ones whose bytes do not have their name."""
    return [f"the store holds {len(data)} bytes under the name {name[:12]}" for name, data in files.items() if _sha256(data) != name]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
