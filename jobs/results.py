"""What a finished job was for: a synthetic set, a report (of one set, or a ranking of many) or an observation."""

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.ids import new_id
from jobs.models import Dataset, Job, JobStep, Result, Step

# kind of job -> (kind of result, prefix of its id, name of the step whose files it is)
RESULTS = {
    "distill": ("synthetic_set", "syn", "distill"),
    "evaluate": ("report", "rep", "report"),
    "observe": ("observation", "obs", "observe"),
    "sweep": ("report", "rep", "ranking"),
}


def add_result(session: Session, job_id: str, at: datetime) -> None:
    """Add the result of a job that has just succeeded."""
    job = session.get_one(Job, job_id)
    kind, prefix, name = RESULTS[job.kind]
    found = select(Step).join(JobStep, JobStep.step_id == Step.id).where(JobStep.job_id == job_id, JobStep.name == name)
    step = session.scalars(found).one()
    dataset = session.get_one(Dataset, job.resolved["dataset_id"])
    info = _about(kind, job, dataset, step.summary or {})
    session.add(Result(id=new_id(prefix), kind=kind, job_id=job_id, step_id=step.id, dataset_id=dataset.id, info=info, created_at=at))


def _about(kind: str, job: Job, dataset: Dataset, summary: dict[str, Any]) -> dict[str, Any]:
    if kind == "synthetic_set":
        return _about_set(job, dataset, summary)
    if kind == "report":
        return {"synthetic_set_id": job.resolved.get("synthetic_set_id"), "summary": summary}
    return {"summary": summary}


def _about_set(job: Job, dataset: Dataset, summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": job.spec["method"]["name"],
        "num_images": summary.get("num_images", job.spec["num_images"]),
        "image_shape": summary.get("image_shape", dataset.image_shape),
        "target_dim": summary.get("target_dim"),
        "learned_lr": summary.get("learned_lr"),
        "learned_lrs": summary.get("learned_lrs"),
    }
