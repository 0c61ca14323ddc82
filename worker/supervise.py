"""Claims a step and watches over the process that runs it: lease, cancellation, hang, drain, crash. Never imports torch."""

import logging
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from sqlalchemy.orm import Session, sessionmaker

from ddcore.plan import engine_digest
from jobs import claims, logs, workers
from jobs.database import transact
from jobs.errors import LeaseLost
from jobs.settings import Settings
from worker.exits import Exit
from worker.launcher import Launcher
from worker.patience import AWAY, patiently
from worker.workplace import free_bytes

_TICK = 0.05  # seconds between looks at the runner
_UNFIT, _LONGEST_UNFIT = 5.0, 60.0  # seconds to take no step after this machine has failed one: at first, and at most
_KILLED = 5.0  # seconds that a killed runner may take to be gone, before its template is killed too
_HAND_BACK = 30.0  # seconds to try to give a step back when told to end: a database that restarts as well will be there again
_NO_MEMORY = "often the machine was out of memory: its kernel log says so; smaller batches or fewer images need less"
T = TypeVar("T")
Why = Literal["cancel", "drain", "lost", "stall"]
log = logging.getLogger(__name__)


@dataclass
class _Watch:
    """What is known of the attempt under way. Times are of the monotonic clock."""

    step_id: str
    attempt: int
    next_beat: float
    why: Why | None = None  # the reason it was first asked to end
    missed: bool = False  # a heartbeat found the lease gone
    away: bool = False  # the last heartbeat found no database
    kill_at: float = math.inf
    killed_at: float = math.inf


class Supervisor:
    """Runs steps one after the other, each in a runner of its own. draining: set (by a signal) to hand back what is running."""

    def __init__(self, settings: Settings, factory: sessionmaker[Session], launcher: Launcher, name: str) -> None:
        self.settings, self.sessions, self.launcher, self.name = settings, factory, launcher, name
        self.draining = False
        self._parent = os.getppid()
        self._unfit = 0  # times in a row that no runner could be started, or that its disk was full

    def run(self, queue: str) -> str:
        """Claim the step whose turn it is on a queue, and see its attempt through; how that ended, in a word.

        "ignored": no step is ready there that this engine may run, or this worker was told to end before it had room for one.
        """
        claim = self._take(queue) if self._has_room() else None
        if claim is None:
            log.debug("doorbell, but no step is ready", extra={"queue": queue})
            return "ignored"
        ids = {"job_ids": claim.jobs, "step_id": claim.step_id, "attempt": claim.attempt, "kind": claim.kind}
        with logs.bound(**ids, queue=claim.queue, worker=self.name):
            return self._see_through(claim)

    def _take(self, queue: str) -> claims.Claim | None:
        """Claim a step; one that was claimed in a commit whose answer got lost is had, not waited for until its lease ends."""
        claim: claims.Claim | None = None

        def take(session: Session) -> claims.Claim | None:
            nonlocal claim
            if claim is None or not claims.stands(session, claim):
                claim = claims.take(session, queue, self.name, engine_digest(), lease_seconds=self.settings.lease_seconds)
            return claim

        return self._commit(take, drained=0.0)

    def _has_room(self) -> bool:
        """Wait until new work has room in scratch; False if told to end before it has. Others may take the steps meanwhile."""
        scratch, reserve, told = self.settings.scratch, self.settings.store_reserve_bytes, False
        while (free := free_bytes(scratch)) <= reserve:
            if not told:
                log.warning("no step is taken until there is room: %s has %d bytes free, and %d are to stay free", scratch, free, reserve)
            told = True
            if self._ending():
                return False
            time.sleep(_TICK)
        if told:
            log.info("there is room again: %s has %d bytes free", scratch, free)
        return True

    def _ending(self) -> bool:
        return self.draining or os.getppid() != self._parent

    def _see_through(self, claim: claims.Claim) -> str:
        step_id, began = claim.step_id, time.monotonic()
        watch = _Watch(step_id, claim.attempt, began + self.settings.heartbeat_seconds)
        log.info("step claimed")
        try:
            self.launcher.start(step_id, claim.attempt)
            while (code := self.launcher.poll()) is None:
                self._look(watch)
                time.sleep(_TICK)
        except BaseException:
            self.launcher.close()  # a runner whom nobody watches must not go on, nor be taken for that of the next step
            raise
        words = self.launcher.last_words()
        try:
            outcome = self._settle(watch, code, words)
        except LeaseLost:
            outcome = "lost"
        except AWAY:
            outcome = "unrecorded"  # its lease will run out
        log.info("step %s", outcome, extra={"code": code, "seconds": round(time.monotonic() - began, 2)})
        self._unfit = 0 if self.launcher.pid and code != Exit.FULL else self._unfit + 1
        self._step_aside()
        return outcome

    def _step_aside(self) -> None:
        """A machine on which nothing starts, or whose disk is full, would fail every step faster than the others can take one."""
        until = time.monotonic() + min(_UNFIT * 2 ** (self._unfit - 1), _LONGEST_UNFIT)
        while self._unfit and time.monotonic() < until and not self._ending():
            time.sleep(_TICK)

    def waits_for_another(self, queue: str) -> str | None:
        """A step that is ready on a queue for workers of another engine, if such are there; None too if the database is away."""
        try:
            return transact(self.sessions, lambda s: workers.waits_for_another(s, queue, engine_digest()))
        except AWAY:
            return None

    def _look(self, watch: _Watch) -> None:
        """Do what is due: renew the lease, ask the runner to stop, or kill it."""
        now = time.monotonic()
        if watch.why is None and self._ending():
            self._stop(watch, "drain", now)
        if now >= watch.next_beat:
            self._beat(watch, now)
        if self.launcher.silence() > self.settings.stall_seconds and watch.why is None:
            watch.why, watch.kill_at = "stall", now
        if now >= watch.kill_at:
            log.warning("killing the runner: %s", watch.why)
            self.launcher.signal(signal.SIGKILL)
            watch.kill_at, watch.killed_at = math.inf, now
        elif now >= watch.killed_at + _KILLED:
            self.launcher.close()

    def _beat(self, watch: _Watch, now: float) -> None:
        lease = self.settings.lease_seconds
        try:
            answer = transact(self.sessions, lambda s: claims.heartbeat(s, watch.step_id, watch.attempt, lease_seconds=lease))
        except AWAY as error:
            if not watch.away:
                log.warning("heartbeats fail: %s", (str(error).splitlines() or [type(error).__name__])[0])
            watch.away = True
            watch.next_beat = now + min(1.0, self.settings.heartbeat_seconds)
            return
        watch.next_beat = now + self.settings.heartbeat_seconds
        if watch.away:
            log.info("heartbeats work again")
            watch.away = False
        if answer == "cancel" and watch.why is None:
            self._stop(watch, "cancel", now)
        elif answer == "lost" and watch.why != "lost":
            # The first time the runner may just have recorded its end, and be about to leave.
            if watch.missed:
                self._stop(watch, "lost", now)
            watch.missed = True

    def _stop(self, watch: _Watch, why: Why, now: float) -> None:
        log.info("asking the runner to stop: %s", why)
        watch.why, watch.kill_at = why, now + self.settings.stop_grace_seconds
        self.launcher.signal(signal.SIGTERM)

    def _settle(self, watch: _Watch, code: int, words: str) -> str:
        """Record how the attempt ended, where the runner could not. Raises `LeaseLost`."""
        step_id, attempt = watch.step_id, watch.attempt
        if code == Exit.DONE:
            return "succeeded"
        if code in (Exit.FAILED, Exit.FULL):
            return "failed"
        if code == Exit.LOST or watch.why == "lost":
            return "lost"
        if watch.why == "stall":
            detail = f"the runner gave no sign of life for {self.settings.stall_seconds:g} s and was killed"
            return self._crashed(step_id, attempt, "worker_lost", detail, "", words)
        if code == Exit.STOPPED or watch.why is not None:
            self._commit(lambda s: claims.release(s, step_id, attempt))
            return "handed back"
        if code < 0:
            detail = f"the runner was killed by {_signal_name(-code)}"
            return self._crashed(step_id, attempt, "worker_lost", detail, _NO_MEMORY if -code == signal.SIGKILL else "", words)
        if self.launcher.pid is None:
            detail = f"the process that runs steps could not start: it ended with code {code}"
            return self._crashed(step_id, attempt, "internal", detail, "the worker's log says why", words)
        return self._crashed(step_id, attempt, "internal", f"the runner ended with code {code}", "see the worker's log", words)

    def _crashed(self, step_id: str, attempt: int, error: str, detail: str, hint: str, words: str) -> str:
        log.warning(detail)
        if words:
            hint = f"{hint}; its last words are in the job's events" if hint else "its last words are in the job's events"
        unbegun = self.launcher.pid is None  # then it cannot be the step's fault
        self._commit(lambda s: claims.fail(s, step_id, attempt, error, detail, hint, retryable=True, machine=unbegun, trace=words))
        return "crashed"

    def _commit(self, work: Callable[[Session], T], drained: float = _HAND_BACK) -> T:
        """Commit, trying for as long as a lease lasts: after that, whoever reaps it decides. drained: seconds to try for when draining."""
        began, lease = time.monotonic(), self.settings.lease_seconds

        def wait(seconds: float) -> bool:
            time.sleep(seconds)
            return time.monotonic() - began > (min(drained, lease) if self.draining else lease)

        return patiently(self.sessions, work, wait)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
