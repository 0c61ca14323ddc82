"""The schema goes up and down on both databases, and is what the models say."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, inspect, make_url, text

from jobs.database import connect
from jobs.errors import WrongRevision
from jobs.migrate import check_revision, differences, downgrade, upgrade
from jobs.models import Base
from jobs.settings import Settings
from tests.jobs.harness import at_once

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a database without any table."""
    if request.param == "sqlite":
        yield Settings(home=tmp_path)
        return
    url = make_url(request.getfixturevalue("postgresql")).set(drivername="postgresql+psycopg")
    server = create_engine(url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("CREATE DATABASE empty"))
        yield Settings(home=tmp_path, database_url=url.set(database="empty").render_as_string(hide_password=False))
        connection.execute(text("DROP DATABASE empty WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def engine(empty: Settings) -> Iterator[Engine]:
    engine = connect(empty)
    yield engine
    engine.dispose()


def test_up_is_what_the_models_say_down_is_nothing_and_up_again(engine: Engine) -> None:
    for _ in range(2):
        with pytest.raises(WrongRevision, match="revision none") as refused:
            check_revision(engine)
        assert "potstill migrate" in refused.value.hint
        upgrade(engine)
        check_revision(engine)
        assert differences(engine) == []
        assert {*inspect(engine).get_table_names()} == {*Base.metadata.tables, "alembic_version"}
        downgrade(engine, "base")
        assert inspect(engine).get_table_names() == ["alembic_version"]


def test_steps_keep_through_the_change_of_the_claim_order(engine: Engine) -> None:
    upgrade(engine, "0001")
    columns = "id, key, kind, queue, params, state, priority, waiting, attempt, failures, max_attempts, rings, created_at"
    values = "'step_1', 'k', 'experts', 'gpu', '{}', 'ready', 7, 0, 2, 1, 3, 0, '2026-01-01 00:00:00'"
    with engine.begin() as connection:
        connection.execute(text(f"INSERT INTO steps ({columns}) VALUES ({values})"))

    def read(more: str) -> tuple[object, ...]:
        with engine.connect() as connection:
            return tuple(connection.execute(text(f"SELECT id, state, priority, attempt{more} FROM steps")).one())

    upgrade(engine, "0002")
    assert read(", turn, engine") == ("step_1", "ready", 7, 2, 0, "")
    downgrade(engine, "0001")
    assert read("") == ("step_1", "ready", 7, 2)
    assert "turn" not in {column["name"] for column in inspect(engine).get_columns("steps")}
    upgrade(engine)
    assert read(", turn, engine") == ("step_1", "ready", 7, 2, 0, "")


def test_going_down_loses_the_workers_and_no_step(engine: Engine) -> None:
    upgrade(engine)
    worker = "'w/1', 'host', 7, '[\"gpu\"]', 'H', 5, 'e', '1', '2026-01-01 00:00:00', '2026-01-01 00:00:00', '2026-01-01 00:00:00'"
    step = "'step_1', 'k', 'experts', 'gpu', '{}', 'running', 'w/1', 7, 0, 2, 1, 3, 0, '2026-01-01 00:00:00'"
    columns = "id, key, kind, queue, params, state, worker, priority, waiting, attempt, failures, max_attempts, rings, created_at"
    with engine.begin() as connection:
        connection.execute(text(f"INSERT INTO workers VALUES ({worker})"))
        connection.execute(text(f"INSERT INTO steps ({columns}) VALUES ({step})"))
    downgrade(engine, "0002")
    assert "workers" not in inspect(engine).get_table_names()
    upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM workers")).scalar() == 0
        assert tuple(connection.execute(text("SELECT worker, state, attempt FROM steps")).one()) == ("w/1", "running", 2)


def test_a_difference_between_tables_and_models_is_seen(engine: Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN more INTEGER"))
        connection.execute(text("DROP INDEX ix_jobs_kind_id"))
    assert sorted(difference[0] for difference in differences(engine)) == ["add_index", "remove_column"]


def test_the_revision_of_a_newer_version_is_refused(engine: Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(WrongRevision, match=r"9999.*newer"):
        check_revision(engine)


def test_several_processes_may_migrate_at_once(empty: Settings) -> None:
    engines = [connect(empty) for _ in range(3)]
    at_once([lambda one=engine: upgrade(one) for engine in engines])
    check_revision(engines[0])
    for engine in engines:
        engine.dispose()


def test_the_command_migrates_from_any_folder(empty: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_DATABASE_URL", empty.database_url)
    monkeypatch.setenv("POTSTILL_HOME", str(empty.home))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "jobs.migrate", *arguments], cwd=tmp_path, capture_output=True, text=True)

    before = run("check")
    assert (before.returncode, "potstill migrate" in before.stderr) == (1, True)
    done = run()
    assert done.returncode == 0, done.stderr
    assert run("check").returncode == 0
