"""What a finished job was for: a synthetic set, a report (of one set, or a ranking of many) or an observation."""

from datetime import datetime
from typing import Any

from sqlalchemy import select, tuple_
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
    made_by = tuple_(Job.kind, JobStep.name).in_([(kind, name) for kind, (_, _, name) in RESULTS.items()])
    found = select(Job, Step).join(JobStep, JobStep.job_id == Job.id).join(Step, Step.id == JobStep.step_id)
    job, step = session.execute(found.where(Job.id == job_id, made_by)).one()
    kind, prefix, _ = RESULTS[job.kind]
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
