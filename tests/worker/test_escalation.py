"""A real runner that will not stop is ended with all that it started."""

import os
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine

from jobs import cancel
from jobs.database import sessions, transact
from jobs.models import Step
from jobs.settings import Settings
from tests.worker.service import gone, post, until
from worker import template
from worker.launcher import Launcher
from worker.supervise import Supervisor


class Stubborn(Launcher):
    """Starts tests.worker.stubborn, as the template starts a runner where it cannot fork, in a process group of its own."""

    def __init__(self, told: Path) -> None:
        super().__init__()
        self.told = told

    def start(self, step_id: str, attempt: int) -> None:
        self._code, self.pid = None, template._spawn("tests.worker.stubborn", str(self.told), log=2)
        self._sign = (0.0, time.monotonic())

    def poll(self) -> int | None:
        assert self.pid is not None
        return template._ended(self.pid)

    def signal(self, number: int) -> None:
        assert self.pid is not None
        template._signal_group(self.pid, number)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("why", ["cancelled", "drained", "hung"])
def test_what_ignores_the_request_is_killed_with_its_children(settings: Settings, engine: Engine, tmp_path: Path, why: str) -> None:
    job_id, steps = post(settings, engine, dataset="digits-train", num_images=4, method={"name": "random"})
    step_id = next(step for name, step in steps.items() if name.startswith("dataset"))
    quick = {"heartbeat_seconds": 0.1, "stop_grace_seconds": 0.5, "stall_seconds": 0.5 if why == "hung" else 600.0}
    launcher = Stubborn(tmp_path / "told")
    one = Supervisor(settings.model_copy(update=quick), sessions(engine), launcher, "me")
    asked: list[float] = []
    look = one._look

    def watched(watch: object) -> None:
        """The request comes when both processes are there."""
        if why != "hung" and not asked and launcher.told.exists():
            asked.append(time.monotonic())
            if why == "drained":
                one.draining = True
            else:
                transact(sessions(engine), lambda s: cancel.cancel(s, job_id))
        if why != "hung" or launcher.told.exists():
            look(watch)  # type: ignore[arg-type]

    one._look = watched  # type: ignore[method-assign]
    assert one.run("io") == ("crashed" if why == "hung" else "handed back")
    both = [int(pid) for pid in launcher.told.read_text().split()]
    until(lambda: all(gone(pid) for pid in both), 5)
    with sessions(engine)() as session:
        step = session.get_one(Step, step_id)
    assert (step.state, step.failures) == {"cancelled": ("cancelled", 0), "drained": ("ready", 0), "hung": ("ready", 1)}[why]
    if asked:
        assert time.monotonic() - asked[0] >= 0.5, "it had its time to stop"
    assert os.getpid() not in both
