import errno
import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError

from ddcore.errors import DdcoreError
from ddcore.events import Reporter
from jobs import catalogue, claims, workers
from jobs.database import sessions, transact
from jobs.errors import StoreAway, StoreFull
from jobs.models import Artifact, Event, Metric, Step
from jobs.settings import Settings
from jobs.store import FolderStore, open_store
from jobs.workers import Presence
from tests.object_server import ObjectServer
from tests.worker.service import archive, post, until
from worker import patience, template
from worker import runner as module
from worker.exits import Exit
from worker.runner import _Runner, allow_open_files

Action = Callable[[Reporter, Path, Path], None]


@pytest.fixture
def attempt(settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[Action], tuple[Exit, Step, _Runner]]:
    """Runs an action in the place of the engine, on a claimed step; returns the exit code, the row and the runner."""
    _, steps = post(settings, engine, num_images=4, method={"name": "random"})
    step_id = next(step for name, step in steps.items() if name.startswith("dataset"))
    claim = transact(sessions(engine), lambda s: claims.claim(s, step_id, "me"))
    assert claim is not None

    def run(action: Action) -> tuple[Exit, Step, _Runner]:
        def run_step(kind: str, params: object, inputs: object, out: Path, work: Path, reporter: Reporter, *_: object) -> dict[str, Any]:
            action(reporter, out, work)
            return {"kind": kind}

        monkeypatch.setattr(module, "run_step", run_step)
        monkeypatch.setattr(module, "set_deterministic", lambda threads: None)  # this process has other tests to run
        runner = _Runner(settings, sessions(engine), step_id, claim.attempt)
        code = runner.run()
        with sessions(engine)() as session:
            return code, session.get_one(Step, step_id), runner

    return run


def raising(error: Exception) -> Action:
    def act(reporter: Reporter, out: Path, work: Path) -> None:
        (out / "half.bin").write_bytes(b"half")
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "state", "code", "words"),
    [
        (DdcoreError("diverged", "the loss is not finite", "a lower rate"), "failed", "diverged", "the loss is not finite"),
        (DdcoreError("teacher_collapsed", "one feature", "lower the rate"), "failed", "teacher_collapsed", "one feature"),
        (DdcoreError("missing_input", "a file is gone", "retry the job"), "failed", "missing_input", "gone"),
        (DdcoreError("download_failed", "no route to host", "try again"), "ready", "download_failed", "no route"),
        (DdcoreError("out_of_memory", "20 GiB are needed", "smaller batches"), "ready", "out_of_memory", "20 GiB"),
        (MemoryError(), "ready", "out_of_memory", "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "ready", "out_of_memory", "2 GiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "ready", "out_of_memory", "9 bytes"),
        (ZeroDivisionError("a bug"), "ready", "internal", "an unexpected ZeroDivisionError: a bug"),
    ],
)
def test_an_error_is_recorded_with_its_class(
    attempt: Callable[[Action], tuple[Exit, Step, _Runner]], error: Exception, state: str, code: str, words: str
) -> None:
    exit_code, step, _ = attempt(raising(error))
    assert (exit_code, step.state, step.failures, step.error_code) == (Exit.FAILED, state, 1, code)
    assert words in str(step.error_detail)
    assert step.error_hint


def test_an_unexpected_error_is_one_sentence_and_its_traceback_is_in_the_events(
    attempt: Callable[[Action], tuple[Exit, Step, _Runner]], engine: Engine
) -> None:
    def deep(reporter: Reporter, out: Path, work: Path, n: int = 60) -> None:
        if n == 0:
            raise ValueError("at the\n  bottom" + "!" * 1000)
        deep(reporter, out, work, n - 1)

    _, step, _ = attempt(deep)
    assert str(step.error_detail).startswith("an unexpected ValueError: at the bottom!!!")
    assert len(str(step.error_detail)) == 500
    with sessions(engine)() as session:
        (said,) = session.scalars(select(Event).where(Event.step_id == step.id, Event.type == "step_retried"))
    lines = said.data["trace"].splitlines()
    assert len(lines) <= 30
    assert any(line.endswith("in deep") for line in lines)
    assert lines[-1].startswith("  bottom")


def test_an_expected_error_needs_no_traceback(attempt: Callable[[Action], tuple[Exit, Step, _Runner]], engine: Engine) -> None:
    _, step, _ = attempt(raising(DdcoreError("diverged", "the loss is not finite", "a lower rate")))
    with sessions(engine)() as session:
        (said,) = session.scalars(select(Event).where(Event.step_id == step.id, Event.type == "step_failed"))
    assert "trace" not in said.data


def test_what_was_said_last_is_recorded_before_the_success(
    attempt: Callable[[Action], tuple[Exit, Step, _Runner]], settings: Settings, engine: Engine
) -> None:
    def act(reporter: Reporter, out: Path, work: Path) -> None:
        (out / "step.json").write_text("{}")
        reporter.progress(10, 10, "images")
        reporter.metric("loss", 1, 0.5)

    code, step, _ = attempt(act)
    assert (code, step.state, step.done, step.summary) == (Exit.DONE, "succeeded", 10, {"kind": "dataset"})
    with sessions(engine)() as session:
        assert session.scalars(select(Metric.value).where(Metric.step_id == step.id)).all() == [0.5]
    assert not (settings.scratch / "steps" / step.key).exists()


def test_a_database_that_is_away_at_the_end_delays_the_success(
    attempt: Callable[[Action], tuple[Exit, Step, _Runner]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = claims.succeed, []

    def succeed(*arguments: Any, **more: Any) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OperationalError("update", {}, Exception("connection refused"))
        real(*arguments, **more)

    monkeypatch.setattr(claims, "succeed", succeed)
    code, step, _ = attempt(lambda reporter, out, work: None)
    assert (code, step.state, len(tries)) == (Exit.DONE, "succeeded", 3)


@pytest.mark.parametrize("error", [StoreAway("connection refused"), StoreFull(7)])
@pytest.mark.parametrize(
    ("longest", "stop", "code", "state", "failures"),
    [(600.0, False, Exit.DONE, "succeeded", 0), (0.0, False, Exit.FAILED, "ready", 1), (600.0, True, Exit.STOPPED, "running", 0)],
)
def test_a_store_that_is_away_or_full_at_the_end_is_waited_for(
    attempt: Callable[[Action], tuple[Exit, Step, _Runner]],
    monkeypatch: pytest.MonkeyPatch,
    error: StoreAway | StoreFull,
    longest: float,
    stop: bool,
    code: Exit,
    state: str,
    failures: int,
) -> None:
    real, tries = FolderStore.put, []

    def put(store: FolderStore, source: Path, **named: Any) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise error
        return real(store, source, **named)

    monkeypatch.setattr(FolderStore, "put", put)
    monkeypatch.setattr(patience, "_STORE_AWAY", longest)
    monkeypatch.setattr(_Runner, "_wait", lambda runner, seconds: runner.stop.set() or True if stop else False)
    found, step, _ = attempt(lambda reporter, out, work: (out / "step.json").write_text("{}"))
    assert (found, step.state, step.failures) == (code, state, failures)
    assert step.error_code == ("internal" if failures else None)
    assert error.detail in (step.error_detail or error.detail)


@pytest.mark.parametrize(("free", "ran"), [([-1, -1], []), ([10**9, 3, 3], ["ran"])])
def test_a_step_that_would_fill_the_disk_is_told_before_it_writes(
    attempt: Callable[[Action], tuple[Exit, Step, _Runner]], monkeypatch: pytest.MonkeyPatch, free: list[int], ran: list[str]
) -> None:
    left = iter(free)
    monkeypatch.setattr(FolderStore, "free", lambda store: next(left))
    monkeypatch.setattr(patience, "_STORE_AWAY", 0.1)
    did = []

    def act(reporter: Reporter, out: Path, work: Path) -> None:
        did.append("ran")
        (out / "large.bin").write_bytes(b"four")

    code, step, runner = attempt(act)
    assert (code, step.state, step.failures, did) == (Exit.FAILED, "ready", 1, ran)
    assert "the artifact store has no room" in str(step.error_detail)
    assert "free some disk space" in str(step.error_hint)
    assert not [path for path in Path(runner.settings.store).rglob("*") if path.is_file()]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_step_reads_from_a_server_and_writes_to_it(
    settings: Settings, engine: Engine, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "set_deterministic", lambda threads: None)
    there = object_server.settings(settings.home, database_url=settings.database_url)
    store = open_store(there)
    upload = catalogue.read_upload(store, archive(tmp_path / "a.zip"))
    key = transact(sessions(engine), lambda s: catalogue.add_upload(s, store, upload, "pictures").step_key)
    with sessions(engine)() as session:
        step_id = session.scalars(select(Step.id).where(Step.key == key)).one()
    claim = transact(sessions(engine), lambda s: claims.claim(s, step_id, "me"))
    assert claim is not None
    assert _Runner(there, sessions(engine), step_id, claim.attempt).run() == Exit.DONE
    with sessions(engine)() as session:
        made = {file.name: file.sha256 for file in session.scalars(select(Artifact).where(Artifact.step_id == step_id))}
    assert {"dataset.safetensors", "preview.png", "step.json"} <= set(made)
    assert set(object_server.objects(there)) == {upload.blob.sha256, *made.values()}
    assert all(store.verify(sha256) for sha256 in made.values())


def fill(reporter: Reporter, out: Path, work: Path) -> None:
    (work / "checkpoint").write_text("half")
    (out / "half.bin").write_text("half")
    (out / "more.bin").symlink_to("/dev/full")  # which takes nothing, as a disk without room
    (out / "more.bin").write_text("more")


def fill_and_wrap(reporter: Reporter, out: Path, work: Path) -> None:
    try:
        fill(reporter, out, work)
    except OSError as error:
        raise DdcoreError("download_failed", f"it could not be fetched: {error}", "try again") from error


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("action", "own"),
    [
        (fill, 8),
        (fill_and_wrap, 8),
        (raising(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")), 4),
        (raising(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/scratch/x")), 4),
    ],
)
def test_a_full_disk_is_the_machines_fault_and_what_can_be_is_freed(
    attempt: Callable[[Action], tuple[Exit, Step, _Runner]], settings: Settings, action: Action, own: int
) -> None:
    unused = settings.scratch / "inputs" / "unused"
    unused.mkdir(parents=True)
    (unused / "large.bin").write_bytes(b"large")
    code, step, _ = attempt(action)
    assert (code, step.state, step.failures, step.error_code) == (Exit.FULL, "ready", 0, "internal")
    assert str(step.error_detail).startswith("the worker's disk is full: ")
    assert f"the step had {own} bytes in {settings.scratch} on {socket.gethostname()}, which now," in str(step.error_detail)
    assert "scratch" in str(step.error_hint)
    left = settings.scratch / "steps" / step.key
    assert [path.name for path in left.iterdir()] == ["work"]
    assert not unused.exists()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_full_disk_of_a_step_that_was_told_to_stop_is_no_failure(
    attempt: Callable[[Action], tuple[Exit, Step, _Runner]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Runner, "_sign", lambda runner: runner.stop.set())
    code, step, _ = attempt(fill)
    assert (code, step.state, step.failures) == (Exit.STOPPED, "running", 0)  # the supervisor hands it back


def test_a_runner_that_was_replaced_stops_by_itself_and_shows_nothing(
    attempt: Callable[[Action], tuple[Exit, Step, _Runner]], engine: Engine
) -> None:
    def act(reporter: Reporter, out: Path, work: Path) -> None:
        with sessions(engine)() as session:
            step_id = session.scalars(select(Step.id).where(Step.state == "running")).one()
        transact(sessions(engine), lambda s: claims.release(s, step_id, 1))
        transact(sessions(engine), lambda s: claims.claim(s, step_id, "another"))
        for n in range(10_000):
            reporter.progress(n, 10_000, "images")  # raises Stopped once the recorder has learned it
            time.sleep(0.01)

    code, step, runner = attempt(act)
    assert (code, runner.lost.is_set()) == (Exit.LOST, True)
    assert (step.state, step.attempt, step.worker, step.done) == ("running", 2, "another", None)


def test_a_stopped_runner_records_nothing_and_keeps_its_checkpoint(
    attempt: Callable[[Action], tuple[Exit, Step, _Runner]], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(reporter: Reporter, out: Path, work: Path) -> None:
        (work / "checkpoint").write_text("half")
        reporter.should_stop = lambda: True
        reporter.progress(1, 2, "images")

    code, step, _ = attempt(act)
    assert (code, step.state, step.failures) == (Exit.STOPPED, "running", 0)  # the supervisor hands it back
    assert (settings.scratch / "steps" / step.key / "work" / "checkpoint").exists()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_fresh_interpreter_does_as_well_where_forking_is_not_safe(
    settings: Settings, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_HOME", str(settings.home))
    monkeypatch.setenv("POTSTILL_DEVICE", "cpu")
    with open(tmp_path / "log", "w+") as log:
        child = template._spawn("worker.runner", "step_unknown", "1", log=log.fileno())
        assert until(lambda: template._ended(child), 60) == Exit.LOST
        presence = Presence("one/7", "host", 7, ("cpu",), "engine", "1.0")
        transact(sessions(engine), lambda s: workers.report(s, presence, alive_seconds=60))
        child = template._spawn("worker.device", "one/7", log=log.fileno())
        assert until(lambda: template._ended(child) is not None, 60)
    with sessions(engine)() as session:
        assert workers.workers(session)[0].device == "cpu"


def test_a_runner_may_hold_thousands_of_inputs_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        allow_open_files()
        raised, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert raised == min(hard, 16_384)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
