"""Workers whose steps take no time: `python -m benchmarks.load_workers --workers 100 --jobs 10000`, in an installation's environment.

Each is a thread with a connection of its own that does in real transactions what a worker does in the database: it waits for a doorbell,
takes the step whose turn it is, renews its lease, and succeeds. Beside them run the duties of the maintenance loop, and every worker says
again and again that it is there. The last line of the output is one JSON object.
"""

import argparse
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

from ddcore.plan import engine_digest
from jobs import claims, outbox, workers
from jobs.database import connect, sessions, transact
from jobs.settings import Settings, get_settings

RELAY_EVERY, REAP_EVERY = 0.3, 5.0  # seconds, as worker.maintenance has them
QUEUE = "cpu"
LEAVE = ""  # in place of a doorbell


@dataclass
class Crew:
    """All workers of the load. jobs: after so many successes they leave; give_up: seconds without one after which they leave too."""

    settings: Settings
    make: sessionmaker[Session]
    workers: int
    jobs: int
    give_up: float
    doorbells: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    taken: list[float] = field(default_factory=list)  # seconds that each claim took
    done: int = 0
    ended_at: float = field(default_factory=time.monotonic)

    def run(self) -> dict[str, Any]:
        began = time.monotonic()
        duties = [
            threading.Thread(target=self._again, args=(every, duty))
            for every, duty in ((RELAY_EVERY, self._relay), (REAP_EVERY, self._reap), (self.settings.heartbeat_seconds, self._report))
        ]
        crew = [threading.Thread(target=self._work, args=(f"load-{n}",)) for n in range(self.workers)]
        for thread in (*duties, *crew):
            thread.start()
        while not self.over.wait(0.5):
            if time.monotonic() - self.ended_at > self.give_up:
                self._leave()
        for thread in (*crew, *duties):
            thread.join()
        seconds = self.ended_at - began
        return {"succeeded": self.done, "seconds": seconds, "claims_per_second": self.done / seconds, "claim_seconds": sorted(self.taken)}

    def _leave(self) -> None:
        self.over.set()
        for _ in range(self.workers):
            self.doorbells.put(LEAVE)

    def _work(self, name: str) -> None:
        engine = engine_digest()
        while self.doorbells.get() != LEAVE and not self.over.is_set():
            began = time.monotonic()
            held = transact(self.make, lambda s: claims.take(s, QUEUE, name, engine, lease_seconds=self.settings.lease_seconds))
            if held is None:
                continue
            took = time.monotonic() - began
            step, attempt = held.step_id, held.attempt
            said = transact(self.make, lambda s, step=step, attempt=attempt: claims.heartbeat(s, step, attempt))  # type: ignore[misc]
            if said != "ok":
                raise RuntimeError(f"step {step} was taken from {name}: {said}")
            transact(self.make, lambda s, step=step, attempt=attempt: claims.succeed(s, step, attempt, [], {}))  # type: ignore[misc]
            with self.lock:
                self.taken.append(took)
                self.done, self.ended_at = self.done + 1, time.monotonic()
                last = self.done == self.jobs
            if last:
                self._leave()

    def _again(self, every: float, duty: Callable[[], None]) -> None:
        while not self.over.is_set():
            duty()
            self.over.wait(every)

    def _relay(self) -> None:
        outbox.relay(self.make, lambda step_id, queue: self.doorbells.put(step_id))

    def _reap(self) -> None:
        transact(self.make, claims.reap)
        transact(self.make, lambda s: outbox.ring_again(s, after=self.settings.ring_seconds))

    def _report(self) -> None:
        for n in range(self.workers):
            who = workers.Presence(f"load-{n}", "load", n, (QUEUE,), engine_digest(), version("potstill"))
            transact(self.make, lambda s, who=who: workers.report(s, who, alive_seconds=self.settings.lease_seconds))  # type: ignore[misc]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--give-up", type=float, default=120.0, help="seconds without a success after which all leave")
    options = parser.parse_args(arguments)
    settings = get_settings()
    engine = connect(settings)
    crew = Crew(settings, sessions(engine), options.workers, options.jobs, options.give_up)
    print(json.dumps(crew.run()), flush=True)
    engine.dispose()


if __name__ == "__main__":
    main()
