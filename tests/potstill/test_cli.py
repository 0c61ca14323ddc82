import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill.cli import main
from potstill.stack import free_port
from potstill.terminal import console
from tests.potstill.conftest import Service
from tests.potstill.test_tables import HEADLINE

STEP = {"name": "distill", "kind": "distill", "state": "running", "cached": False, "started_at": None, "finished_at": None}
RUNNING: dict[str, Any] = {
    "id": "job_1",
    "kind": "distill",
    "state": "running",
    "phase": "distilling",
    "error": None,
    "results": {},
    "priority": 0,
    "parent_id": None,
    "steps": [STEP | {"progress": {"done": 5, "total": 10, "unit": "iterations"}}],
}
DONE = RUNNING | {
    "state": "succeeded",
    "steps": [STEP | {"state": "succeeded", "progress": {"done": 10, "total": 10, "unit": "iterations"}}],
    "results": {"synthetic_set": "syn_1"},
}


@pytest.fixture(autouse=True)
def _owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_OWNER", "ada")


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """`main` takes over signals, as the main program may."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_distill_posts_the_fields_that_were_given_and_follows(service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers = {"POST /distill": [(202, RUNNING)], "GET /jobs/job_1": [(200, RUNNING), (200, DONE)]}
    spec = tmp_path / "spec.json"
    spec.write_text('{"seed": 3, "method": {"name": "mkdt", "iterations": 7}}')
    fields = ["--set", "method.iterations=100", "--set", "teacher.ssl=dino", "--set", "num_images=20"]
    status = main(["distill", "--url", service.url, "--preset", "smoke", "--dataset", "mine", "--spec", str(spec), *fields])
    assert status == 0
    assert json.loads(service.requests[0][2]) == {
        "seed": 3,
        "method": {"name": "mkdt", "iterations": 100},
        "teacher": {"ssl": "dino"},
        "num_images": 20,
        "preset": "smoke",
        "dataset": "mine",
        "owner": "ada",
    }
    out = capsys.readouterr().out
    assert "10/10 iterations" in out
    assert "potstill download syn_1" in out


def test_evaluate_takes_one_task_from_its_options(service: Service) -> None:
    service.answers = {"POST /evaluate": [(202, RUNNING | {"kind": "evaluate"})]}
    assert main(["evaluate", "syn_1", "--url", service.url, "--train", "a", "--test", "b", "--seeds", "3", "--detach"]) == 0
    assert json.loads(service.requests[0][2]) == {
        "synthetic_set": "syn_1",
        "downstream": [{"train": "a", "test": "b"}],
        "seeds": 3,
        "owner": "ada",
    }


def test_observe_posts_follows_and_fetches_the_pictures(service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = DONE | {"kind": "observe", "results": {"observation": "obs_1"}}
    files = {"data": [{"id": "art_1", "name": "motion.json", "kind": "plot"}, {"id": "art_2", "name": "step.json", "kind": "manifest"}]}
    answers = {"POST /observe": [(202, RUNNING)], "GET /jobs/job_1": [(200, done)], "GET /jobs/job_1/artifacts": [(200, files)]}
    service.answers = answers
    fields = ["--dataset", "mine", "--runs", "3", "--set", "teacher.ssl=dino", "--figures", str(tmp_path / "seen")]
    assert main(["observe", "--url", service.url, *fields]) == 0
    assert json.loads(service.requests[0][2]) == {"dataset": "mine", "runs": 3, "teacher": {"ssl": "dino"}, "owner": "ada"}
    assert "observation obs_1; 0 pictures" in capsys.readouterr().out


def test_sweep_posts_a_file_and_shows_the_ranking(service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = DONE | {"kind": "sweep", "results": {"report": "rep_1"}}
    report = {"id": "rep_1", "report": {"variants": ["plain", "better"], "headline": HEADLINE}}
    answers = {"POST /sweeps": [(202, RUNNING)], "GET /jobs/job_1": [(200, done)], "GET /reports/rep_1": [(200, report)]}
    service.answers = answers
    (tmp_path / "sweep.json").write_text('{"variants": {"plain": {}}, "seeds": 8}')
    fields = ["--preset", "ablation-digits", "--seeds", "3", "--set", "evaluate.validation=0.3"]
    assert main(["sweep", str(tmp_path / "sweep.json"), "--url", service.url, *fields]) == 0
    assert json.loads(service.requests[0][2]) == {
        "variants": {"plain": {}},
        "seeds": 3,
        "preset": "ablation-digits",
        "evaluate": {"validation": 0.3},
        "owner": "ada",
    }
    out = capsys.readouterr().out
    assert "report rep_1" in out
    assert "/jobs/job_1/plots/ranking.png" in out
    assert "66.00" in out
    assert main(["sweep", "--preset", "ablation-digits", "--url", service.url, "--detach"]) == 0
    assert json.loads(service.requests[-1][2]) == {"preset": "ablation-digits", "owner": "ada"}


def test_a_failed_job_is_status_1_and_one_line(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    failed = RUNNING | {"state": "failed", "error": {"code": "diverged", "detail": "NaN at iteration 3", "hint": "lower method.lr_images"}}
    service.answers = {"POST /distill": [(202, RUNNING)], "GET /jobs/job_1": [(200, failed)]}
    assert main(["distill", "--url", service.url]) == 1
    error = capsys.readouterr().err
    assert error == "potstill: distill job_1 failed (diverged): NaN at iteration 3; lower method.lr_images\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["upload", "absent.zip"], "absent.zip is not a file"),
        (["distill", "--spec", "absent.json"], "cannot read the spec absent.json"),
        (["distill", "--set", "num_images"], "--set takes FIELD=VALUE"),
        (["distill", "--set", "a=1", "--set", "a.b=2"], "a is not a table"),
        (["jobs"], "is it running?"),
    ],
)
def test_what_goes_wrong_is_one_line_and_status_1(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--url", f"http://127.0.0.1:{free_port()}"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_post_says_for_whom_how_urgent_and_under_which_words(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ("/distill", "/evaluate", "/observe", "/sweeps", "/jobs/job_0/clone")
    service.answers = {f"POST {path}": [(202, RUNNING)] for path in paths}
    commands = (["distill"], ["evaluate", "syn_1"], ["observe"], ["sweep"], ["clone", "job_0"])
    for path, command in zip(paths, commands, strict=True):
        filing = ["--priority", "7", "--label", "a", "--label", "b", "--owner", "bob"]
        assert main([*command, "--detach", "--url", service.url, *filing]) == 0
        said, _, body = service.requests[-1]
        assert said == f"POST {path}"
        posted = json.loads(body)
        assert (posted["priority"], posted["labels"], posted["owner"]) == (7, ["a", "b"], "bob")

    def owner(*more: str) -> str:
        assert main(["distill", "--detach", "--url", service.url, *more]) == 0
        posted = json.loads(service.requests[-1][2])
        assert "priority" not in posted
        return str(posted["owner"])

    assert owner() == "ada"
    assert owner("--set", "owner=cy") == "cy"
    monkeypatch.delenv("POTSTILL_OWNER")
    monkeypatch.setattr("getpass.getuser", lambda: "_Grüne Fee\\lab")
    assert owner() == "Gr-ne-Fee-lab"

    def nobody() -> str:
        raise KeyError("uid 1234")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert owner() == ""
    capsys.readouterr()


def test_a_job_is_changed_after_it_was_posted(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers = {"PATCH /jobs/job_1": [(200, RUNNING | {"priority": 10, "labels": ["x"]})]}
    assert main(["change", "job_1", "--url", service.url, "--priority", "10", "--label", "x"]) == 0
    assert json.loads(service.requests[0][2]) == {"priority": 10, "labels": ["x"]}
    assert "job_1: priority 10, labels x" in capsys.readouterr().out
    assert main(["change", "job_1", "--url", service.url]) == 1
    assert "nothing to change" in capsys.readouterr().err
    assert len(service.requests) == 1


def test_a_clone_is_followed_to_its_results(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers = {"POST /jobs/job_0/clone": [(202, RUNNING)], "GET /jobs/job_1": [(200, RUNNING), (200, DONE)]}
    assert main(["clone", "job_0", "--url", service.url]) == 0
    assert json.loads(service.requests[0][2]) == {"owner": "ada"}
    assert "synthetic_set: syn_1" in capsys.readouterr().out


def test_a_retry_says_what_is_left_and_is_followed_to_its_results(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    posted = RUNNING | {"parent_id": "job_0", "steps": [STEP | {"cached": True, "state": "succeeded", "progress": None}, *RUNNING["steps"]]}
    service.answers = {"POST /jobs/job_0/retry": [(202, posted)], "GET /jobs/job_1": [(200, RUNNING), (200, DONE)]}
    assert main(["retry", "job_0", "--url", service.url]) == 0
    out = capsys.readouterr().out
    assert "A new job after job_0; 1 of its 2 steps are done already." in out
    assert "synthetic_set: syn_1" in out
    assert main(["retry", "job_0", "--url", service.url, "--detach"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "distill job_1"
    problem = {"title": "conflict", "detail": "job_0 is running: it cannot be retried; clone it"}
    service.answers = {"POST /jobs/job_0/retry": [(409, problem)]}
    assert main(["retry", "job_0", "--url", service.url]) == 1
    assert "clone it" in capsys.readouterr().err


def test_a_wrong_call_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["distil"])
    assert caught.value.code == 2
    assert "invalid choice: 'distil'" in capsys.readouterr().err


def test_status_shows_stages_and_results(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers = {"GET /jobs/job_1": [(200, DONE)]}
    assert main(["status", "job_1", "--url", service.url]) == 0
    out = capsys.readouterr().out
    assert "distill job_1: succeeded" in out
    assert "synthetic_set: syn_1" in out
    service.answers = {"GET /jobs/job_1": [(200, RUNNING | {"eta": {"low_seconds": 190, "high_seconds": 290, "runs": 12}})]}
    assert main(["status", "job_1", "--url", service.url]) == 0
    assert "about 3 to 5 minutes left, from 12 past runs" in capsys.readouterr().out


def test_lists_hold_whole_ids_and_names_in_any_terminal(
    service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, data = f"job_{'0' * 26}", f"ds_{'0' * 26}"
    shown = RUNNING | {
        "id": job,
        "owner": "ada",
        "phase": "waiting for a worker, before reading the dataset",
        "created_at": "2026-01-02T03:04:05.678Z",
    }
    dataset = {"id": data, "name": "flowers102-train", "state": "available", "num_images": 1020, "num_classes": 102}
    pages = {"has_more": False, "next_cursor": None}
    service.answers = {
        "GET /jobs?owner=ada&limit=20": [(200, {"data": [shown], **pages})],
        "GET /datasets?limit=200": [(200, {"data": [dataset | {"image_shape": [3, 64, 64]}], **pages})],
    }
    monkeypatch.setattr(console, "width", 80)
    assert main(["jobs", "--url", service.url, "--owner", "ada"]) == 0
    assert main(["datasets", "--url", service.url]) == 0
    out = capsys.readouterr().out
    assert job in out
    assert " prio " in out
    assert "2026-01-02" in out
    assert "owner" not in out
    assert f"{data}  flowers102-train available 1020   102     3x64x64" in out


def test_a_list_of_jobs_of_several_owners_names_them(
    service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 120)
    jobs = [RUNNING | {"owner": owner, "priority": 7, "created_at": "2026-01-02T03:04:05.678Z"} for owner in ("ada", "bob")]
    service.answers = {"GET /jobs?limit=20": [(200, {"data": jobs, "has_more": False, "next_cursor": None})]}
    assert main(["jobs", "--url", service.url]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["id", "kind", "state", "prio", "owner"]
    assert [row.split()[:5] for row in rows] == [["job_1", "distill", "running", "7", owner] for owner in ("ada", "bob")]
