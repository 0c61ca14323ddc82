"""What a job does now, in words for people."""

from collections.abc import Sequence

from ddcore.specs import MATCHING
from jobs.models import Job, Step

DOING = {
    "dataset": "reading the dataset",
    "teacher": "training the teacher",
    "targets": "computing the teacher's targets",
    "experts": "training experts",
    "distill": "choosing images",
    "export": "exporting the synthetic set",
    "figures": "drawing the figures",
    "tune": "choosing the baselines' learning rates",
    "evaluate": "evaluating",
    "report": "writing the report",
    "ranking": "ranking the variants",
    "observe": "observing how the networks moved",
}


def doing(step: Step) -> str:
    """The work of one step."""
    if step.kind == "distill" and step.params.get("method", {}).get("name") in MATCHING:
        return "matching trajectories"
    if step.kind == "teacher" and step.params.get("teacher", {}).get("ssl") == "given":
        return "loading the teacher"
    return DOING.get(step.kind, step.kind)


def phase(job: Job, steps: Sequence[Step], ahead: int | None = None, engine: str | None = None) -> str:
    """One line; steps: of the job, each once, in the order of its plan. ahead: steps before it in the queue, if known.

    engine: of the next step, if the workers that are there all run others.
    """
    if job.state == "succeeded":
        return "done"
    if job.state == "cancelled":
        return "cancelled"
    if job.state == "cancelling":
        return "cancelling: waiting for a running step to stop"
    if job.state == "failed":
        broken = next((step for step in steps if step.state == "failed"), None)
        return f"failed while {doing(broken)}" if broken else "failed"
    running = [step for step in steps if step.state == "running"]
    if running:
        return _running(running[-1], steps)
    waiting = next((step for step in steps if step.state == "ready"), None)
    if waiting and engine is not None:
        planner = f"engine {engine}" if engine else "the engine before the upgrade"
        return f"waiting for a worker of another version ({planner}), before {doing(waiting)}"
    what = f"waiting for a worker, before {doing(waiting)}" if waiting else "waiting"
    return f"{what}: {ahead:,} {'step' if ahead == 1 else 'steps'} ahead" if ahead else what


def _running(step: Step, steps: Sequence[Step]) -> str:
    words = doing(step)
    alike = [other for other in steps if other.kind == step.kind and doing(other) == words]
    if len(alike) > 1:
        return f"{words}: {sum(other.state == 'succeeded' for other in alike):,} of {len(alike):,} parts done"
    if step.total:
        return f"{words}: {step.done or 0:,} of {step.total:,} {step.unit}"
    return words
