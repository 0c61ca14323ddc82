"""`python -m worker.runner STEP ATTEMPT`: runs one attempt of one step in this process, which owns the accelerator and then ends."""

import argparse
import contextlib
import logging
import os
import resource
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.orm import Session, sessionmaker

from ddcore.errors import DdcoreError, Stopped
from ddcore.events import Event, Reporter
from ddcore.matching.memory import ran_out, said_of
from ddcore.run import choose_device, run_step, set_deterministic
from ddcore.task import Resources
from jobs import claims, condemned, logs, quota, retention
from jobs.database import connect, sessions
from jobs.errors import LeaseLost, StoreAway, StoreFull
from jobs.records import record
from jobs.settings import Settings, get_settings
from jobs.store import open_store
from worker import outputs
from worker.exits import Exit
from worker.inputs import InputCache, MissingInput
from worker.lineage import die_with_parent, watch_parent
from worker.patience import AWAY, patiently, with_store
from worker.recorder import Recorder
from worker.workplace import Workplace, free_bytes, is_full

_SIGN_OF_LIFE = 1.0  # seconds between two
_OPEN_FILES = 16_384
_TRACE_LINES = 30
_MAY_PASS = ("out_of_memory", "download_failed")  # what the engine says that another attempt may not meet again
_LONGEST = 500  # characters of what an unexpected error says
T = TypeVar("T")
log = logging.getLogger(__name__)


def run(step_id: str, attempt: int) -> int:
    """Run the attempt that a supervisor has claimed and record how it ended; the exit code for the supervisor."""
    allow_open_files()
    logs.bind(step_id=step_id, attempt=attempt)
    settings = get_settings()
    engine = connect(settings)
    began = time.monotonic()
    try:
        runner = _Runner(settings, sessions(engine), step_id, attempt)
        signal.signal(signal.SIGTERM, lambda *_: runner.stop.set())
        code = runner.run()
    finally:
        engine.dispose()
    seconds = round(time.monotonic() - began, 2)
    log.info("runner ends", extra={"code": code.name, "seconds": seconds})
    return code


def allow_open_files() -> None:
    """Each input folder in use is held open, and the ranking of a sweep has thousands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


class _Runner:
    """One attempt. stop is set by SIGTERM or with `lost`, when another attempt has taken over."""

    def __init__(self, settings: Settings, factory: sessionmaker[Session], step_id: str, attempt: int) -> None:
        self.settings, self.sessions, self.step_id, self.attempt = settings, factory, step_id, attempt
        self.stop, self.lost = threading.Event(), threading.Event()
        self._last_sign = 0.0
        self._place: Workplace | None = None
        self.store = open_store(settings, self._sign)

    def run(self) -> Exit:
        try:
            self._execute()
            return Exit.DONE
        except LeaseLost:
            return Exit.LOST
        except Stopped:
            return Exit.LOST if self.lost.is_set() else Exit.STOPPED
        except AWAY:
            return Exit.STOPPED  # asked to stop while the database was away
        except Exception as error:
            if self.stop.is_set() and (isinstance(error, StoreAway | StoreFull) or is_full(error)):
                return Exit.LOST if self.lost.is_set() else Exit.STOPPED
            log.warning("step fails", exc_info=error)
            return self._fail(error)

    def _execute(self) -> None:
        work = self._commit(lambda s: claims.load(s, self.step_id, self.attempt))
        logs.bind(job_ids=work.jobs, kind=work.kind)
        log.info("runner begins", extra={"pid": os.getpid()})
        place = self._place = Workplace(self.settings.scratch / "steps", work.key, self.attempt)
        cache = InputCache(self.settings.scratch / "inputs", self.store, self.settings.cache_bytes)
        recorder = Recorder(self.sessions, self.step_id, self.attempt, self._on_lost)
        try:
            self._require_room(1)  # rather now than after hours of work
            inputs = {role: [self._stored(cache.folder, files) for files in steps] for role, steps in work.inputs.items()}
            set_deterministic(self.settings.threads or None)
            reporter = Reporter(
                sink=lambda event: self._say(recorder, event),
                should_stop=self.stop.is_set,
                checkpoint_seconds=self.settings.checkpoint_seconds,
            )
            device = choose_device(self.settings.device)
            resources = self._resources(work, cache)
            summary = run_step(work.kind, work.params, inputs, place.out, place.work, reporter, device, resources)
            artifacts = self._keep(place.out)
        finally:
            rest = recorder.close()
        if rest:
            self._commit(lambda s: record(s, self.step_id, self.attempt, rest))
        self._finish(place.out, artifacts, summary)
        try:
            place.remove()
            cache.close()
            place.sweep()
        except OSError as error:
            log.warning("the step succeeded, but its scratch files could not be tidied: %s", error)

    def _keep(self, out: Path) -> list[claims.NewArtifact]:
        """Put every file of `out` into the store. Nobody sees them before the transaction that names them."""
        kinds = outputs.kinds_of(path.name for path in out.iterdir())
        self._require_room(sum(path.stat().st_size for path in out.iterdir()))
        artifacts = []
        for name, kind in kinds.items():
            blob = self._stored(self.store.put, out / name, name=name)
            artifacts.append(claims.NewArtifact(name, kind, outputs.media_type_of(name), blob.sha256, blob.size))
        return artifacts

    def _finish(self, out: Path, artifacts: list[claims.NewArtifact], summary: dict[str, Any]) -> None:
        """The transaction that names the files, while nobody may remove them: see `jobs.condemned`."""
        files = {one.sha256: (out / one.name, one.name) for one in artifacts}
        while True:
            held = self._stored(condemned.hold, self._commit, self.store, files)
            try:
                self._commit(lambda s, held=held: self._name(s, held, artifacts, summary))  # type: ignore[misc]
                return
            except condemned.HeldTooLongAgo as error:
                log.info("%s", error.detail)

    def _name(self, session: Session, held: datetime, artifacts: list[claims.NewArtifact], summary: dict[str, Any]) -> None:
        condemned.require(session, held)
        claims.succeed(session, self.step_id, self.attempt, artifacts, summary)

    def _require_room(self, needed: int) -> None:
        self._stored(self._commit, lambda s: quota.require(s, self.store, needed))

    def _resources(self, work: claims.Work, cache: InputCache) -> Resources:
        archive = work.params.get("source", {}).get("archive")
        checkpoint = work.params.get("teacher", {}).get("checkpoint")
        return Resources(
            archives={archive: self._stored(cache.file, archive)} if archive else {},
            checkpoints={checkpoint: self._stored(cache.file, checkpoint)} if checkpoint else {},
            downloads=self.settings.scratch / "downloads",
            short_of_memory=work.short_of_memory,
        )

    def _fail(self, error: Exception) -> Exit:
        code, detail, hint, retryable = explain(error)
        full = is_full(error) and not isinstance(error, StoreFull | StoreAway)
        trace = _trace(error) if code == "internal" else ""
        if full:
            detail = f"{detail}; {self._make_room()}"

        def end(session: Session) -> None:
            if isinstance(error, MissingInput):
                retention.lose_file(session, error.sha256)  # so that a job that is posted from now on makes it again
            claims.fail(session, self.step_id, self.attempt, code, detail, hint, retryable=retryable, machine=full, trace=trace)

        try:
            self._commit(end)
        except LeaseLost:
            return Exit.LOST
        except AWAY:
            return Exit.STOPPED
        return Exit.FULL if full else Exit.FAILED

    def _make_room(self) -> str:
        """Remove from scratch what nobody needs now, not the checkpoint; how full it was and is, in words."""
        scratch, own = self.settings.scratch, 0
        with contextlib.suppress(OSError):
            if self._place is not None:
                own = self._place.size()
                self._place.clear()
                self._place.sweep()
            InputCache(scratch / "inputs", self.store, 0).evict()
        there = f"{scratch} on {socket.gethostname()}"
        return f"the step had {own:,} bytes in {there}, which now, without what can be made again, has {free_bytes(scratch):,} free"

    def _commit(self, work: Callable[[Session], T]) -> T:
        return patiently(self.sessions, work, self._wait)

    def _wait(self, seconds: float) -> bool:
        self._sign()  # waiting on purpose is not hanging
        return self.stop.wait(seconds)

    def _on_lost(self) -> None:
        self.lost.set()
        self.stop.set()

    def _say(self, recorder: Recorder, event: Event) -> None:
        self._sign()
        recorder(event)

    def _stored(self, function: Callable[..., T], *args: Any, **named: Any) -> T:
        """Call a function that needs the store, which may be away for a while."""
        self._sign()
        return with_store(lambda: function(*args, **named), self._wait)

    def _sign(self) -> None:
        """A sign of life: the supervisor watches the age of the file that our standard output goes to."""
        now = time.monotonic()
        if now - self._last_sign >= _SIGN_OF_LIFE:
            self._last_sign = now
            with contextlib.suppress(OSError):  # started by hand, on a terminal
                os.utime(1)


def explain(error: Exception) -> tuple[str, str, str, bool]:
    """The code, detail and hint that a person reads, and whether another attempt could end differently; see `worker.exits`."""
    text = str(error) or type(error).__name__
    if isinstance(error, StoreFull | StoreAway):
        return "internal", error.detail, error.hint, True
    if is_full(error):
        return (
            "internal",
            f"the worker's disk is full: {text.splitlines()[0]}",
            "free some space there, or give scratch a larger disk",
            True,
        )
    if isinstance(error, DdcoreError):
        return error.code, error.detail, error.hint, error.code in _MAY_PASS
    if ran_out(error):
        return "out_of_memory", said_of(error), "smaller batches, a smaller student or fewer images", True
    detail = f"an unexpected {type(error).__name__}: {' '.join(text.split())}"
    hint = "this is a fault of potstill or of its installation: please report it, with the traceback in the job's events"
    return "internal", detail if len(detail) <= _LONGEST else f"{detail[: _LONGEST - 1]}…", hint, True


def _trace(error: Exception) -> str:
    """The end of its traceback, without the lines that only underline."""
    lines = [line for line in "".join(traceback.format_exception(error)).splitlines() if line.strip(" ^~")]
    return "\n".join(lines[-_TRACE_LINES:])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.runner", description=__doc__)
    parser.add_argument("step")
    parser.add_argument("attempt", type=int)
    parser.add_argument("--parent", type=int, help="the process to end with")
    args = parser.parse_args()
    if args.parent is not None:
        die_with_parent(args.parent)
        watch_parent(args.parent)
    settings = get_settings()
    logs.configure(settings.log_level, settings.log_json)
    return run(args.step, args.attempt)


if __name__ == "__main__":
    raise SystemExit(main())
