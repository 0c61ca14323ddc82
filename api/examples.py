"""Answers as Swagger UI shows them."""

from typing import Any

_ID = "job_01m7xjx60fsgn3whkv1vejxwqp"
_STEP: dict[str, Any] = {"id": "step_01m7xjx601xe3m5vw39kdch3pj", "attempt": 1, "cached": False, "note": None, "error": None}

JOB: dict[str, Any] = {
    "id": _ID,
    "kind": "distill",
    "state": "running",
    "phase": "matching trajectories: 1,200 of 5,000 iterations",
    "spec": {"preset": "smoke", "dataset": "digits-train", "num_images": 20, "method": {"name": "mkdt"}},
    "labels": ["trial"],
    "priority": 0,
    "owner": "ada",
    "parent_id": None,
    "created_at": "2026-11-20T22:58:17.231Z",
    "started_at": "2026-11-20T22:58:18.004Z",
    "finished_at": None,
    "progress": {"done": 6.24, "total": 9, "unit": "steps", "eta_seconds": 41.5},
    "queue": None,
    "eta": {"low_seconds": 40.2, "high_seconds": 71.9, "runs": 12},
    "steps": [
        {
            **_STEP,
            "name": "teacher",
            "kind": "teacher",
            "state": "succeeded",
            "started_at": "2026-11-20T22:58:19.120Z",
            "finished_at": "2026-11-20T22:58:25.310Z",
            "progress": {"done": 2, "total": 2, "unit": "epochs", "eta_seconds": None},
        },
        {
            **_STEP,
            "name": "distill",
            "kind": "distill",
            "state": "running",
            "started_at": "2026-11-20T22:58:30.870Z",
            "finished_at": None,
            "progress": {"done": 1200, "total": 5000, "unit": "iterations", "eta_seconds": 41.5},
        },
    ],
    "results": {"summaries": {"teacher": {"knn_accuracy": 93.1}}},
    "error": None,
    "links": {"self": f"/jobs/{_ID}", "events": f"/jobs/{_ID}/events", "cancel": f"/jobs/{_ID}/cancel"},
    "poll_after_seconds": 0.512,
}
