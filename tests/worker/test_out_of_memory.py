"""An attempt that runs out of memory is tried again once, keeping less, and ends in the same set."""

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import Engine, select, update

from ddcore.matching import loop
from ddcore.matching.adjoint import InnerRun, Memory
from ddcore.plan import engine_digest
from jobs import claims
from jobs.database import connect, now, sessions, transact
from jobs.models import Artifact, Event, Job, Step
from jobs.settings import Settings
from tests.worker.service import post
from worker import runner as module
from worker.exits import Exit
from worker.runner import _Runner

MATCHED = {
    "preset": "smoke",
    "dataset": "digits-train",
    "teacher": {
        "ssl": "simclr",
        "backbone": {"name": "convnet", "width": 8, "depth": 2},
        "epochs": 1,
        "batch_size": 256,
        "projector_dim": 16,
        "warmup_epochs": 0,
    },
}


@pytest.fixture
def here(sqlite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Settings, Engine]]:
    monkeypatch.setattr(module, "set_deterministic", lambda threads: None)  # this process has other tests to run
    shutil.copy(sqlite_file, tmp_path / "potstill.db")
    settings = Settings(home=tmp_path)
    engine = connect(settings)
    yield settings, engine
    engine.dispose()


def next_attempt(settings: Settings, engine: Engine) -> tuple[str, Exit] | None:
    """Run the step whose turn it is, as a worker would: its kind, and how that ended."""
    factory = sessions(engine)
    for queue in ("io", "cpu", "gpu"):
        claim = transact(factory, lambda s, queue=queue: claims.take(s, queue, "me", engine_digest()))  # type: ignore[misc]
        if claim is not None:
            return claim.kind, _Runner(settings, factory, claim.step_id, claim.attempt).run()
    return None


def run_all(settings: Settings, engine: Engine) -> list[tuple[str, Exit]]:
    ends = []
    while (end := next_attempt(settings, engine)) is not None:
        ends.append(end)
    return ends


def limited(monkeypatch: pytest.MonkeyPatch, most: int) -> list[Memory]:
    """Let matching have room for the thetas of `most` steps; the plans that it tried."""
    tried: list[Memory] = []
    real = loop.run_inner

    def run_inner(inner: Any, start: torch.Tensor, memory: Memory) -> InnerRun:
        if not tried or tried[-1] != memory:
            tried.append(memory)
        run = real(inner, start, memory)
        if len(run.thetas) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return run

    monkeypatch.setattr(loop, "run_inner", run_inner)
    return tried


def step_of(engine: Engine, steps: dict[str, str]) -> Step:
    with sessions(engine)() as session:
        return session.get_one(Step, steps["distill"])


def bytes_of(engine: Engine, steps: dict[str, str]) -> str:
    with sessions(engine)() as session:
        query = select(Artifact.sha256).where(Artifact.step_id == steps["distill"], Artifact.name == "synthetic.safetensors")
        return session.scalars(query).one()


def test_the_second_attempt_keeps_less_and_makes_the_same_set(here: tuple[Settings, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    settings, engine = here
    _, steps = post(settings, engine, **MATCHED)
    with monkeypatch.context() as small:
        tried = limited(small, most=4)
        assert run_all(settings, engine).count(("distill", Exit.FAILED)) == 1
    step = step_of(engine, steps)
    assert (step.state, step.attempt, step.failures, step.error_code) == ("succeeded", 2, 1, None)
    assert [memory.thetas for memory in tried] == ["device", "sparse"]
    with sessions(engine)() as session:
        said = session.scalars(select(Event).where(Event.step_id == step.id, Event.type == "step_retried")).one().data
    assert said["code"] == "out_of_memory"
    assert said["detail"].startswith("CUDA out of memory. Tried to allocate 20.00 GiB; ")

    once = bytes_of(engine, steps)
    _, again = post(settings, engine, **MATCHED)
    assert again["distill"] == steps["distill"]
    shutil.rmtree(settings.home / "blobs")
    with sessions(engine).begin() as session:
        session.get_one(Step, steps["distill"]).lost_at = step.finished_at
    _, again = post(settings, engine, **MATCHED)
    run_all(settings, engine)
    assert step_of(engine, again).attempt == 1
    assert bytes_of(engine, again) == once


def test_a_second_want_of_memory_fails_the_job_with_the_numbers(here: tuple[Settings, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    settings, engine = here
    job_id, steps = post(settings, engine, **MATCHED)
    tried = limited(monkeypatch, most=0)
    assert run_all(settings, engine).count(("distill", Exit.FAILED)) == 2
    step = step_of(engine, steps)
    assert (step.state, step.attempt, step.failures, step.error_code) == ("failed", 2, 2, "out_of_memory")
    assert [memory.thetas for memory in tried] == ["device", "sparse"]
    with sessions(engine)() as session:
        job = session.get_one(Job, job_id)
    assert job.state == "failed"
    for words in (
        "Tried to allocate 20.00 GiB; ",
        "inner steps on batches of",
        "need at least",
        "GiB were free",
        "parameters of a few steps",
    ):
        assert words in str(job.error_detail)
    assert job.error_hint


@pytest.mark.parametrize(
    ("codes", "short", "state"),
    [
        ((), False, "ready"),
        (("out_of_memory",), True, "failed"),
        (("worker_lost",), True, "failed"),  # the kernel kills what takes too much
        (("silent",), False, "ready"),  # a machine that was switched off
        (("silent", "silent"), True, "failed"),
        (("out_of_memory", "silent"), True, "failed"),
        (("internal", "silent"), False, "ready"),
        (("internal",), False, "ready"),
        (("out_of_memory", "internal"), False, "failed"),  # as often as any step may fail
    ],
)
def test_what_an_attempt_knows_of_those_before_it(here: tuple[Settings, Engine], codes: tuple[str, ...], short: bool, state: str) -> None:
    settings, engine = here
    _, steps = post(settings, engine, num_images=4, method={"name": "random"})
    step_id = next(step for name, step in steps.items() if name.startswith("dataset"))
    factory = sessions(engine)
    for number, code in enumerate((*codes, "out_of_memory"), start=1):
        assert transact(factory, lambda s: claims.claim(s, step_id, "me")) is not None
        if number > len(codes):
            assert transact(factory, lambda s: claims.load(s, step_id, len(codes) + 1)).short_of_memory is short
        if code == "silent":
            transact(factory, lambda s: s.execute(update(Step).where(Step.id == step_id).values(lease_until=now(s) - timedelta(seconds=1))))
            assert transact(factory, claims.reap) == 1
            continue
        transact(factory, lambda s, n=number, code=code: claims.fail(s, step_id, n, code, "x", retryable=True))  # type: ignore[misc]
    with factory() as session:
        assert session.get_one(Step, step_id).state == state
