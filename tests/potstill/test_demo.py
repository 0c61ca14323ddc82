import json
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from potstill import demo
from tests.potstill.conftest import Service
from tests.potstill.test_tables import REPORT

STEP = {
    "name": "distill",
    "kind": "distill",
    "state": "succeeded",
    "cached": False,
    "progress": {"done": 9, "total": 9, "unit": "iterations"},
    "started_at": "2025-01-01T00:00:00Z",
    "finished_at": "2025-01-01T00:01:05Z",
}


def test_demo_leaves_the_set_the_pictures_and_the_summary(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Running:
        """Stands in for the stack: the scripted service."""

        url = service.url

        def __init__(self, home: Path, **options: Any) -> None:
            assert home == tmp_path / "home"

        def __enter__(self) -> "Running":
            return self

        def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
            pass

        def check(self) -> None:
            pass

    monkeypatch.setattr(demo, "Stack", Running)
    job = {"id": "job_1", "kind": "distill", "state": "succeeded", "steps": [STEP], "results": {"synthetic_set": "syn_1"}}
    evaluation = {"id": "job_2", "kind": "evaluate", "state": "succeeded", "steps": [], "results": {"report": "rep_1"}}
    plots = [
        {"id": f"art_{n}", "kind": kind, "name": name} for n, (kind, name) in enumerate((("plot", "losses.png"), ("plot", "losses.svg")))
    ]
    service.answers = {
        "POST /distill": [(202, job)],
        "GET /jobs/job_1": [(200, job)],
        "GET /synthetic-sets/syn_1/download?format=safetensors": [(200, "the set")],
        "POST /evaluate": [(202, evaluation)],
        "GET /jobs/job_2": [(200, evaluation)],
        "GET /reports/rep_1": [(200, {"id": "rep_1", "report": REPORT})],
        "GET /jobs/job_1/artifacts": [(200, {"data": plots})],
        "GET /jobs/job_2/artifacts": [(200, {"data": []})],
        "GET /artifacts/art_0/content": [(200, "a picture")],
    }
    demo.run(tmp_path)
    assert json.loads((tmp_path / "synthetic.safetensors").read_text()) == "the set"
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["losses.png"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["paired_difference_to_random"] == {"mean": 5.0, "low": 4.8, "high": 5.2}
    assert summary["synthetic_set"] == str(tmp_path / "synthetic.safetensors")
    assert json.loads(service.requests[3][2])["synthetic_set"] == "syn_1"
    out = capsys.readouterr().out
    assert "distil 1:05" in out
    assert "losses.png" in out
    assert "make up" in out
