"""A round: a new installation, one job, one fault at a random moment, a verdict. A lane plays rounds one after the other."""

import contextlib
import random
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.stack import free_port
from tests.chaos.faults import FAULTS, Fault, Scene, full_flag
from tests.chaos.judge import Facts, compare, gather
from tests.chaos.servers import PostgreSQL, Proxy, fill
from tests.chaos.stand import Interrupted, Late, Stand, pause, wait_for
from tests.chaos.watch import Watcher
from tests.object_server import ObjectServer
from tests.worker.service import RedisServer, make_service

# Real teacher, experts and matching: some ten seconds of one core, a checkpoint every third of one.
SPEC: dict[str, Any] = {
    "preset": "smoke",
    "teacher": {"epochs": 5},
    "experts": {"num": 4, "per_shard": 2},
    "method": {"iterations": 500, "max_start_epoch": 60},
}
QUICK: dict[str, Any] = {"lease_seconds": 4.0, "checkpoint_seconds": 0.3, "store_reserve_bytes": 0, "device": "cpu", "threads": 1}
_TOO_LATE = "the job ended before the fault"
TRIES = 3  # of a round whose fault came when the job had ended


@dataclass(frozen=True)
class Round:
    number: int
    seed: str
    database: str
    fault: str


@dataclass
class Outcome:
    """wrong: why the round failed; nothing if it passed. logs: where they are kept, then."""

    round: Round
    seconds: float = 0.0
    facts: Facts = field(default_factory=Facts)
    said: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    logs: Path | None = None


class Lane:
    """Plays rounds, one at a time, with a PostgreSQL and an object store of its own. keep: the logs of rounds that passed, too."""

    def __init__(self, folder: Path, shim: Path, keep: bool) -> None:
        self.folder, self.shim, self.keep = folder, shim, keep
        self.undisturbed: Facts | None = None
        self._postgresql: PostgreSQL | None = None
        self._objects: ObjectServer | None = None

    def close(self) -> None:
        """End the servers that outlast a round."""
        if self._objects is not None:
            self._objects.stop()
        if self._postgresql is not None:
            self._postgresql.remove()

    def play(self, round: Round) -> Outcome:
        """Play a round, again with another moment if its fault came too late. Raises `Interrupted`."""
        began = time.monotonic()
        for number in range(TRIES):
            outcome = Outcome(round)
            home = self.folder / f"round-{round.number}-{number}"
            try:
                self._play(outcome, home, random.Random(f"{round.seed}/{number}"))
            except Late:
                outcome.wrong.append(_TOO_LATE)
            except Interrupted:
                raise
            except Exception as error:
                outcome.wrong.append(f"{type(error).__name__}: {error}")
            if _TOO_LATE not in outcome.wrong:
                break
        outcome.seconds = time.monotonic() - began
        if outcome.wrong or self.keep:
            outcome.logs = home
        else:
            shutil.rmtree(home, ignore_errors=True)
        return outcome

    def _play(self, outcome: Outcome, home: Path, chance: random.Random) -> None:
        fault = FAULTS.get(outcome.round.fault)
        with contextlib.ExitStack() as cleanup:
            scene = self._build(outcome.round, home, fault, chance, cleanup)
            outcome.said, stand = scene.said, scene.stand
            cleanup.callback(lambda: outcome.wrong.extend(f"left behind: {one}" for one in stand.close()))
            stand.open(free_port())
            if fault is not None and fault.posts:
                fault.strike(scene)
            else:
                stand.warm()
                scene.job_id = stand.post(SPEC, "only")
            watcher = Watcher(stand.url, scene.job_id)
            cleanup.callback(watcher.stop)
            if fault is not None and not fault.posts:
                self.wait_for_the_moment(scene)
                fault.strike(scene)
            wait_for(lambda: stand.ended(scene.job_id), "the job to end", every=0.1)
            stand.ready()
            watcher.stop()
            outcome.facts = gather(stand, scene.job_id, self._objects if fault is not None and fault.store == "server" else None)
            outcome.wrong += watcher.wrong + compare(outcome.facts, self.undisturbed or outcome.facts, fault.costs if fault else 0)
            outcome.wrong += [] if watcher.looks else ["nobody could look at the job"]

    def _build(self, round: Round, home: Path, fault: Fault | None, chance: random.Random, cleanup: contextlib.ExitStack) -> Scene:
        """A new installation, of which only Redis runs."""
        home.mkdir(parents=True)
        socket = Path(tempfile.mkdtemp(prefix="potstill-redis-"))  # its path must be short
        cleanup.callback(shutil.rmtree, socket, ignore_errors=True)
        redis = RedisServer(socket / "s")
        redis.start()
        cleanup.callback(redis.stop)
        settings, proxy, postgresql = dict(QUICK), None, None
        if round.database == "postgresql":
            postgresql = self._server()
            name = home.name.replace("-", "_")
            settings["database_url"] = postgresql.new(name)
            cleanup.callback(postgresql.drop, name)
        else:
            shutil.copy(self._sqlite_file(), home / "potstill.db")
        if fault is not None and fault.store == "server":
            proxy = self._proxy(home, settings, cleanup)
        plain = make_service(home, redis.url, **settings)
        env = plain.env
        if fault is not None and fault.fills:
            folder = {"store": plain.settings.store, "scratch": str(plain.settings.scratch)}[fault.fills]
            env = env | {"LD_PRELOAD": str(self.shim), "CHAOS_FULL": str(full_flag(home)), "CHAOS_FOLDER": folder}
        return Scene(Stand(plain.settings, plain.engine, env), redis, chance, SPEC, postgresql, proxy)

    def wait_for_the_moment(self, scene: Scene) -> None:
        """Wait until a moment that is anywhere in the work of the undisturbed run, as likely as any other. Raises `Late`.

        On a busy machine that run was faster or slower than this one, as the steps before tell: else many a fault would come too late.
        """
        assert self.undisturbed is not None
        seconds = self.undisturbed.seconds
        scene.step = scene.random.choices(list(seconds), list(seconds.values()))[0]
        step_id, begun = scene.stand.steps(scene.job_id)[scene.step], ("running", "succeeded", "failed", "cancelled")
        wait_for(lambda: scene.stand.step(step_id).state in begun, f"step {scene.step} to begin")
        before = {name: step for name, step in scene.stand.took(scene.job_id).items() if name != scene.step}
        until = time.monotonic() + scene.random.uniform(0.0, seconds[scene.step]) * pace(before, seconds)
        while time.monotonic() < until and scene.stand.step(step_id).state == "running":
            pause(0.02)
        if scene.stand.ended(scene.job_id):
            raise Late

    def _server(self) -> PostgreSQL:
        if self._postgresql is None:
            self._postgresql = PostgreSQL()
            self._postgresql.start()
            fill(self._postgresql.new("fresh"), self.folder)
        return self._postgresql

    def _sqlite_file(self) -> Path:
        path = self.folder / "fresh.db"
        if not path.exists():
            fill(f"sqlite:///{path}", self.folder)
        return path

    def _proxy(self, home: Path, settings: dict[str, Any], cleanup: contextlib.ExitStack) -> Proxy:
        if self._objects is None:
            self._objects = ObjectServer()
            self._objects.start()
        there = self._objects.settings(home)
        proxy = Proxy(self._objects.port)
        cleanup.callback(proxy.stop)
        settings |= {"store": there.store, "store_endpoint": proxy.url, "store_access_key_id": there.store_access_key_id}
        settings["store_secret_access_key"] = there.store_secret_access_key.get_secret_value()
        return proxy


def pace(took: dict[str, float], undisturbed: dict[str, float]) -> float:
    """How much longer steps take here than they took undisturbed, by those that are done. Both: seconds by name."""
    known = sum(undisturbed[name] for name in took)
    return sum(took.values()) / known if known else 1.0
