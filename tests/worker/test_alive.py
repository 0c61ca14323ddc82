from datetime import timedelta

import pytest
from sqlalchemy import Engine, update

from ddcore.plan import engine_digest
from jobs import claims, workers
from jobs.database import now, sessions, transact
from jobs.models import Doorbell, Step
from jobs.settings import Settings
from tests.worker.service import post
from worker.alive import DEAF, PATIENCE, ailment

HERE = workers.Presence("here/1", "here", 1, ("cpu",), "engine", "1")


@pytest.fixture
def reachable(settings: Settings, redis_url: str) -> Settings:
    return settings.model_copy(update={"redis_url": redis_url})


def test_a_worker_is_well_while_it_says_so(reachable: Settings, engine: Engine) -> None:
    assert "no worker of here" in ailment(reachable, "worker", "here")
    transact(sessions(engine), lambda s: workers.report(s, HERE, alive_seconds=60))
    assert ailment(reachable, "worker", "here") == ""
    assert "no worker of elsewhere" in ailment(reachable, "worker", "elsewhere")
    transact(sessions(engine), lambda s: workers.report(s, HERE, alive_seconds=-1))
    assert "no worker of here" in ailment(reachable, "worker", "here")


def test_a_worker_that_does_not_hear_is_not_well(reachable: Settings, engine: Engine) -> None:
    factory = sessions(engine)
    deaf = workers.Presence("here/2", "here", 2, ("io",), engine_digest(), "1")
    transact(factory, lambda s: workers.report(s, deaf, alive_seconds=60))
    post(reachable, engine, num_images=4, method={"name": "random"})
    long_ago = transact(factory, now) - timedelta(seconds=DEAF + 1)
    transact(factory, lambda s: s.execute(update(Step).where(Step.state == "ready").values(ready_at=long_ago, rung_at=long_ago)).close())
    assert ailment(reachable, "worker", "here") == "", "its doorbell was not sent: that is not the worker's fault"
    transact(factory, lambda s: s.query(Doorbell).delete())
    assert ailment(reachable, "worker", "here").startswith("worker here/2 runs nothing, though step_")
    busy = update(Step).where(Step.state == "blocked").values(state="running", worker="here/2")
    transact(factory, lambda s: s.execute(busy).close())
    assert ailment(reachable, "worker", "here") == ""


def test_a_worker_between_two_steps_is_well(reachable: Settings, engine: Engine) -> None:
    factory = sessions(engine)
    one = workers.Presence("here/3", "here", 3, ("io",), engine_digest(), "1")
    transact(factory, lambda s: workers.report(s, one, alive_seconds=60))
    for dataset in ("digits-train", "digits-test"):
        post(reachable, engine, dataset=dataset, num_images=4, method={"name": "random"})
    long_ago = transact(factory, now) - timedelta(seconds=DEAF + 1)
    waited = update(Step).where(Step.state == "ready").values(ready_at=long_ago, rung_at=long_ago)
    transact(factory, lambda s: (s.execute(waited), s.query(Doorbell).delete()))
    for end in (claims.release, lambda s, step_id, attempt: claims.succeed(s, step_id, attempt, [], {})):
        held = transact(factory, lambda s: claims.take(s, "io", one.name, one.engine))
        assert held is not None
        begun = update(Step).where(Step.id == held.step_id).values(started_at=long_ago)
        transact(factory, lambda s, begun=begun: s.execute(begun).close())  # type: ignore[misc]
        transact(factory, lambda s, end=end, held=held: end(s, held.step_id, held.attempt))  # type: ignore[misc]
        assert ailment(reachable, "worker", "here") == ""
        ended = update(Step).where(Step.id == held.step_id)
        transact(factory, lambda s, ended=ended: s.execute(ended.values(ready_at=long_ago, rung_at=long_ago, finished_at=long_ago)).close())  # type: ignore[misc]
        transact(factory, lambda s: s.query(Doorbell).delete())
        assert ailment(reachable, "worker", "here").startswith("worker here/3 runs nothing")


def test_maintenance_is_well_while_nothing_is_left_undone(reachable: Settings, engine: Engine) -> None:
    factory = sessions(engine)
    assert ailment(reachable, "maintenance", "here") == ""
    post(reachable, engine, num_images=4, method={"name": "random"})
    assert ailment(reachable, "maintenance", "here") == "", "a doorbell that was just written is no fault"
    long_ago = transact(factory, now) - timedelta(seconds=PATIENCE + 1)
    transact(factory, lambda s: s.execute(update(Doorbell).values(created_at=long_ago)).close())
    assert "doorbells were not sent" in ailment(reachable, "maintenance", "here")
    transact(factory, lambda s: s.query(Doorbell).delete())
    transact(factory, lambda s: s.execute(update(Step).where(Step.state == "ready").values(state="running", lease_until=long_ago)).close())
    assert "1 steps whose lease ran out" in ailment(reachable, "maintenance", "here")
    assert transact(factory, claims.reap) == 1
    assert ailment(reachable, "maintenance", "here") == ""


def test_it_says_which_part_is_away(reachable: Settings) -> None:
    away = reachable.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    assert ailment(away, "worker", "here").startswith("Redis cannot be used")
    lost = reachable.model_copy(update={"database_url": "postgresql+psycopg://me@127.0.0.1:1/nothing"})
    assert ailment(lost, "maintenance", "here").startswith("the database cannot be used")
