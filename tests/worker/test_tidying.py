"""The maintenance loop deletes what somebody has let go of, and lets go of files itself only where the settings give them a time."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from jobs import condemned
from jobs.database import sessions
from jobs.errors import StoreAway
from jobs.models import Artifact, Condemned, Job, Step
from jobs.settings import Settings
from jobs.store import FolderStore
from tests.conftest import Database
from tests.jobs.harness import World, plan
from worker.app import make_app
from worker.maintenance import Duty, Maintenance


def duty(loop: Maintenance, name: str) -> Duty:
    return next(one for one in loop.duties if one.name == name)


def loop_of(settings: Settings, engine: Engine) -> Maintenance:
    return Maintenance(settings, sessions(engine), make_app("unix:///nowhere/socket"))


def test_condemned_files_are_deleted_in_their_time(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loop_of(database.settings, database.engine)
    assert "let go of files of steps" not in [one.name for one in loop.duties], "nothing goes by itself"
    path = tmp_path / "file"
    path.write_text("nameless")
    blob = loop.store.put(path)
    database.write(lambda s: condemned.condemn(s, [blob]))
    tidy = duty(loop, "delete condemned files")
    assert tidy.act() == 0
    assert loop.store.exists(blob.sha256)
    with database.sessions.begin() as session:
        session.scalars(select(Condemned)).one().at -= timedelta(hours=1)
    assert tidy.act() == 1
    assert not loop.store.exists(blob.sha256)


def test_a_store_that_is_away_stops_no_other_duty(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: object, **named: object) -> None:
        raise StoreAway("refused")

    monkeypatch.setattr(condemned, "remove", away)
    tidy = duty(loop_of(database.settings, database.engine), "delete condemned files")
    tidy.run()
    assert tidy.failures == 1


def test_files_that_have_a_time_go_by_themselves(database: Database, tmp_path: Path) -> None:
    loop = loop_of(database.settings.model_copy(update={"keep_days": {"experts": 2}}), database.engine)
    world = World(database, FolderStore(Path(database.settings.store)), tmp_path)
    job_id = world.submit(plan("a", "distill<a"))
    world.finish_job(job_id)
    expire = duty(loop, "let go of files of steps")
    assert expire.act() == 0
    with database.sessions.begin() as session:
        for row in (*session.scalars(select(Step)), *session.scalars(select(Job))):
            row.created_at -= timedelta(days=3)
            if row.finished_at is not None:
                row.finished_at -= timedelta(days=3)
    assert expire.act() == 1
    gone = database.read(lambda s: {file.gone_at is not None: file.step_id for file in s.scalars(select(Artifact))})
    assert gone[True] == world.step(job_id, "a").id
    assert gone[False] == world.step(job_id, "distill").id
