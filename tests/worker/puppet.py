"""A runner that does as a test says, and its supervisor."""

import signal
from typing import Any

from sqlalchemy import Engine

from jobs.database import sessions
from jobs.models import Step
from jobs.settings import Settings
from worker.launcher import Launcher
from worker.supervise import Supervisor


class Puppet(Launcher):
    """A runner that ends with `code` after `looks` looks, or when it gets one of the signals in `ends_on`."""

    def __init__(self, code: int = 0, looks: float = 1, words: str = "", quiet: float = 0.0, ends_on: dict[int, int] | None = None) -> None:
        super().__init__()
        self.code, self.looks, self.words, self.quiet = code, looks, words, quiet
        self.ends_on = {signal.SIGKILL: -signal.SIGKILL} if ends_on is None else ends_on
        self.signals: list[int] = []
        self.before_end: Any = lambda step_id, attempt: None

    def start(self, step_id: str, attempt: int) -> None:
        self.started, self.pid = (step_id, attempt), 1 << 30

    def poll(self) -> int | None:
        self.looks -= 1
        if self.looks < 0:
            self.before_end(*self.started)
            return self.code
        return None

    def signal(self, number: int) -> None:
        self.signals.append(number)
        if number in self.ends_on:
            self.code, self.looks = self.ends_on[number], 0

    def silence(self) -> float:
        return self.quiet

    def last_words(self) -> str:
        return self.words


def supervisor(settings: Settings, engine: Engine, puppet: Puppet, **changes: Any) -> Supervisor:
    quick: dict[str, Any] = {"heartbeat_seconds": 0.1, "stop_grace_seconds": 0.3} | changes
    return Supervisor(settings.model_copy(update=quick), sessions(engine), puppet, "me")


def row(engine: Engine, step_id: str) -> Step:
    with sessions(engine)() as session:
        return session.get_one(Step, step_id)
