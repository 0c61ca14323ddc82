"""`python -m ddcore run`: distil, evaluate, refuse, stop and go on."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections import Counter

import pytest
import torch

from ddcore import __main__ as command
from ddcore.errors import DdcoreError
from ddcore.run import STEPS
from ddcore.synthetic import load_synthetic

QUICK = {"preset": "smoke", "teacher": {"epochs": 1}, "experts": {"num": 1}, "method": {"iterations": 3}}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a spec (any JSON value, or the text of a file) in this process; returns the exit status and what was said."""
    monkeypatch.setattr(command, "set_deterministic", lambda threads: None)  # both would outlive the test
    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)
    monkeypatch.chdir(tmp_path)

    def go(body, out="out", *options):
        text = body if isinstance(body, str) else json.dumps(body)
        (tmp_path / "spec.json").write_text(text)
        status = command.main(["run", "spec.json", out, *options])
        return status, capsys.readouterr().err.splitlines()

    return go


def test_a_spec_becomes_files_and_a_second_run_finds_them(run, tmp_path):
    status, said = run(QUICK)
    assert status == 0
    assert [line for line in said if line.startswith("  note: matching with the explicit")]
    steps = [line.split()[0] for line in said[:-1] if not line.startswith("  note:")]
    assert steps == ["dataset-449a2107", "teacher", "targets", "experts-0", "init-high_loss", "distill", "export", "figures"]
    assert said[-1].startswith("done in")
    assert len(load_synthetic(tmp_path / "out" / "distill" / "synthetic.safetensors").images) == 20
    assert torch.load(tmp_path / "out" / "export" / "synthetic.pt", weights_only=True)["images"].shape == (20, 1, 8, 8)
    assert (tmp_path / "out" / "figures" / "losses.png").stat().st_size > 1000
    status, said = run(QUICK)
    assert status == 0
    assert Counter("cached" in line for line in said) == {True: 8, False: 1}

    # an evaluation elsewhere uses the finished steps, also when it names the run by its folder alone
    task = {"train": "digits-train", "test": "digits-test"}
    body = {"synthetic_set": "out", "downstream": [task], "seeds": 2, "baselines": ["random", "none"], "label_fractions": [0.05]}
    status, said = run(body | {"label_draws": 1, "pretrain": {"lr": 0.05}}, "elsewhere")
    assert status == 0
    cached = [line.split()[0] for line in said if " cached " in line]
    assert {"teacher", "targets", "experts-0", "distill"} <= set(cached)
    report = json.loads((tmp_path / "elsewhere" / "report" / "report.json").read_text())
    assert set(report["headline"]["accuracy"]) == {"synthetic", "synthetic_8bit", "random", "none"}
    assert all(one["n"] == 2 for one in report["headline"]["accuracy"].values())
    assert "| " in (tmp_path / "elsewhere" / "report" / "report.md").read_text()


def test_a_zip_of_real_images_is_distilled(run, tmp_path, real_images):
    with zipfile.ZipFile(real_images("cifar10-train.zip")) as whole, zipfile.ZipFile(tmp_path / "slice.zip", "w") as part:
        seen = Counter()
        for name in whole.namelist():
            folder = name.rpartition("/")[0]
            if not name.endswith("/") and seen[folder] < 4:
                seen[folder] += 1
                part.writestr(name, whole.read(name))
    experts = {"num": 1, "batch_size": 8}  # as many steps an epoch as a window has
    status, said = run(QUICK | {"dataset": "slice.zip", "num_images": 5, "experts": experts})
    assert status == 0, said
    made = load_synthetic(tmp_path / "out" / "distill" / "synthetic.safetensors")
    assert made.images.shape == (5, 3, 32, 32)
    assert made.indices.max() < sum(seen.values())


def test_an_observation_stands_under_its_own_key(run, tmp_path):
    teacher = {"ssl": "simclr", "backbone": {"name": "convnet", "width": 8, "depth": 2}, "epochs": 1, "warmup_epochs": 0, "snapshots": 3}
    status, said = run({"observe": {"teacher": teacher}})
    assert status == 0
    assert [line.split()[0] for line in said[:-1]] == ["dataset-449a2107", "teacher", "observe"]
    assert json.loads((tmp_path / "out" / "observe" / "observations.json").read_text())["facts"]["ssl"] == "simclr"


def test_a_sweep_is_ranked_and_a_second_one_in_its_folder_finds_what_they_share(run, tmp_path):
    body = {
        "base": QUICK,
        "variants": {"mkdt": {}, "random": {"method": {"name": "random"}}},
        "seeds": 2,
        "evaluate": {
            "downstream": [{"train": "digits-train", "test": "digits-test"}],
            "baselines": ["random"],
            "seeds": 1,
            "label_fractions": [0.05],
            "label_draws": 1,
            "pretrain": {"lr": 0.05},
            "validation": 0.3,
        },
    }
    status, said = run(body)
    assert status == 0, said
    ranking = json.loads((tmp_path / "out" / "ranking-spec" / "ranking.json").read_text())
    assert (set(ranking["headline"]["order"]), ranking["headline"]["n"]) == ({"mkdt", "random"}, 2)
    assert (tmp_path / "out" / "ranking-spec" / "ranking.png").stat().st_size > 1000
    status, said = run(body | {"variants": {"mkdt": {}, "longer": {"method": {"iterations": 4}}}})
    assert status == 0
    fresh = {line.split()[0] for line in said[:-1] if " cached " not in line and not line.startswith("  note:")}
    assert {"0/teacher", "0/experts-0", "mkdt/0/distill", "mkdt/1/evaluate-0-1"}.isdisjoint(fresh)
    assert {"longer/0/distill", "longer/1/evaluate-0-1", "ranking"} <= fresh
    assert not any(name.endswith("teacher") or "mkdt" in name for name in fresh)


SWEPT = {"downstream": [{"train": "digits-train", "test": "digits-test"}]}
REFUSED = [
    ('{"preset": ', "the spec is not readable JSON"),
    ([1], "a spec is a JSON object, not list"),
    ({"preset": "nope"}, "preset: no preset is called that; there are: "),
    ({"preset": ["demo"]}, "preset: no preset is called that; there are: cpu-small"),
    ({"num_images": 0}, "num_images: Input should be greater than or equal to 1 (given: 0)"),
    ({"preset": "smoke", "method": {"colour": "[bold]"}}, "method.mkdt.colour: Extra inputs are not permitted (given: '[bold]')"),
    ({"preset": "smoke", "num_images": 5000}, "(given: 5000; allowed: 1 to 1297)"),
    ({"dataset": "no/such[/x]"}, "'no/such[/x]' is neither a built-in nor a path; built-ins: aircraft-test"),
    ({"dataset": "spec.json"}, "'spec.json': the file is not a zip"),
    ({"preset": "smoke", "teacher": {"ssl": "given", "checkpoint": "absent.safetensors"}}, "there is no file 'absent.safetensors'"),
    ({"synthetic_set": "nowhere", "downstream": [{"train": "digits-train", "test": "digits-test"}]}, "nowhere/spec.json"),
    ({"synthetic_set": "nowhere", "downstream": []}, "downstream: "),
    ({"preset": "ablation-digits", "seeds": 0}, "seeds: Input should be greater than or equal to 1"),
    (
        {"variants": {"a": {"num_images": 5000}, "b": {}}, "evaluate": SWEPT},
        "variants.a.num_images: dataset digits-train has only 1297 images",
    ),
    ({"observe": {"runs": 0}}, "runs: Input should be greater than or equal to 1"),
    ({"observe": {"teacher": {"ssl": "given"}}}, "a given teacher has no recorded run: train one with ssl dino"),
]


@pytest.mark.parametrize(("body", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_refusal_is_one_readable_line_and_status_two(run, tmp_path, body, words):
    status, said = run(body)
    assert status == 2
    assert len(said) == 1
    assert said[0].startswith("refused: ")
    assert words in said[0]
    assert not (tmp_path / "out").exists()


def test_each_problem_has_its_line(run):
    status, said = run({"num_images": 0, "seed": -1})
    assert (status, len(said)) == (2, 2)
    assert [line.split(":")[1].strip() for line in said] == ["num_images", "seed"]


def test_a_device_or_thread_count_that_is_not_there_is_refused(run, capsys):
    status, said = run(QUICK, "out", "--device", "abacus")
    assert status == 2
    assert "device 'abacus'" in said[0]
    with pytest.raises(SystemExit) as caught:
        run(QUICK, "out", "--threads", "0")
    assert caught.value.code == 2
    assert "at least one thread" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DdcoreError("diverged", "it ran [away] to [/inf]", "try less"), ["diverged: it ran [away] to [/inf]", "  try: try less"]),
        (OSError(28, "No space left on device"), ["failed: [Errno 28] No space left on device"]),
    ],
)
def test_a_run_that_fails_says_so_as_it_is_and_has_status_one(run, monkeypatch, error, said):
    def fail(task):
        raise error

    monkeypatch.setitem(STEPS, "teacher", fail)
    status, lines = run(QUICK)
    assert status == 1
    assert lines[1:] == said


def test_ctrl_c_leaves_a_checkpoint_and_the_next_run_goes_on(run, tmp_path, monkeypatch):
    train, calls = STEPS["teacher"], []

    def interrupted(task):
        def progress(done, *said):
            calls.append(done)
            if len(calls) == 4:
                signal.raise_signal(signal.SIGINT)
            tell(done, *said)

        tell = task.reporter.progress
        monkeypatch.setattr(task.reporter, "progress", progress)
        return train(task)

    monkeypatch.setitem(STEPS, "teacher", interrupted)
    before = signal.getsignal(signal.SIGINT)
    status, said = run(QUICK)
    assert status == 1
    assert said[1].startswith("stopping at the next checkpoint")
    assert said[2].startswith("stopped; run the same command again")
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setitem(STEPS, "teacher", train)
    monkeypatch.setitem(STEPS, "figures", lambda task: {})
    status, said = run(QUICK)
    assert status == 0
    assert any(line.startswith(f"  note: resumed at step {calls[-1]} of") for line in said)


def test_as_a_module_in_its_own_process_with_threads_set(tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps({"preset": "smoke", "num_images": 2000}))
    line = [sys.executable, "-m", "ddcore", "run", str(tmp_path / "spec.json"), str(tmp_path / "out"), "--threads", "1"]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "COLUMNS": "40"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "refused: num_images: dataset digits-train has only 1297 images (given: 2000; allowed: 1 to 1297)\n"
