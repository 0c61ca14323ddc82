"""A database in use goes down any number of revisions and up again, and loses nothing that the older schema can hold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect, make_url, text

from ddcore.specs import DistillSpec
from jobs import cancel, catalogue, claims, condemned, records, workers
from jobs.create import create_distill
from jobs.database import connect
from jobs.migrate import check_revision, downgrade, upgrade
from jobs.models import Base
from jobs.settings import Settings
from jobs.store import Blob, FolderStore
from tests.conftest import Database
from tests.jobs.harness import World, plan

ROOT = Path(__file__).parent.parent.parent
REVISIONS = [script.revision for script in ScriptDirectory(str(ROOT / "migrations")).walk_revisions()]  # newest first
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A migrated database of its own."""
    settings, server = Settings(home=tmp_path), None
    if request.param == "postgresql":
        url = make_url(request.getfixturevalue("postgresql")).set(drivername="postgresql+psycopg")
        server = create_engine(url, isolation_level="AUTOCOMMIT")
        with server.connect() as connection:
            connection.execute(text("CREATE DATABASE in_use"))
        settings = Settings(home=tmp_path, database_url=url.set(database="in_use").render_as_string(hide_password=False))
    engine = connect(settings)
    upgrade(engine)
    yield World(Database(settings, engine), FolderStore(tmp_path / "blobs"), tmp_path)
    engine.dispose()
    if server is not None:
        with server.connect() as connection:
            connection.execute(text("DROP DATABASE in_use WITH (FORCE)"))
        server.dispose()


def put_in_use(world: World) -> str:
    """Jobs in every state, with all that comes with them; the id of one that can go on."""
    database = world.database
    database.write(catalogue.ensure_builtins)
    done = world.submit(plan("a", "distill<a", seed=1), labels=["paper"], priority=3, owner="ada")
    world.run(done, "a", "distill")
    failed = world.submit(plan("a", "distill<a", seed=2))
    held = world.claim(failed, "a")
    database.write(lambda s: claims.fail(s, held.step_id, held.attempt, "bad_dataset", "no images", "send some"))
    cancelled = world.submit(plan("a", "distill<a", seed=3))
    database.write(lambda s: cancel.cancel(s, cancelled).id)
    running = world.submit(plan("a", "distill<a", seed=4))
    held = world.claim(running, "a")
    said = [{"type": "metric", "name": "loss", "x": 1.0, "value": 0.5}, {"type": "progress", "done": 1, "total": 2, "unit": "steps"}]
    database.write(lambda s: records.record(s, held.step_id, held.attempt, said))
    database.write(lambda s: create_distill(s, world.store, DistillSpec(preset="smoke"), idempotency_key="once").id)
    own = workers.Presence("w1", "host", 7, ("gpu", "cpu"), "engine", "0.1")
    database.write(lambda s: workers.report(s, own, alive_seconds=90.0))
    database.write(lambda s: condemned.condemn(s, [Blob("0" * 64, 5_000_000_000)]))
    return running


def rows(engine: Engine) -> Rows:
    """Everything in the database, in an order of its own."""
    found: Rows = {}
    with engine.connect() as connection:
        for table in inspect(engine).get_table_names():
            read = [dict(row._mapping) for row in connection.execute(text(f'SELECT * FROM "{table}"'))]
            found[table] = sorted(read, key=lambda row: [str(value) for value in row.values()])
    return found


def kept(before: Rows, columns: dict[str, set[str]]) -> Rows:
    """What of `before` a schema of these columns can hold."""
    told = {table: [{name: row[name] for name in row if name in columns[table]} for row in before[table]] for table in columns}
    return {table: sorted(read, key=lambda row: [str(value) for value in row.values()]) for table, read in told.items()}


@pytest.mark.parametrize("world", ["sqlite", "postgresql"], indirect=True)
def test_a_database_in_use_goes_down_to_each_revision_and_up_again(world: World) -> None:
    engine, going_on = world.database.engine, put_in_use(world)
    before = rows(engine)
    assert [table for table in Base.metadata.tables if not before[table]] == [], "every table must have something to lose"
    for revision in REVISIONS[1:]:
        downgrade(engine, revision)
        schema = inspect(engine)
        tables = [table for table in schema.get_table_names() if table != "alembic_version" and table in before]
        columns = {table: {column["name"] for column in schema.get_columns(table)} & {*before[table][0]} for table in tables}
        upgrade(engine)
        check_revision(engine)
        after = rows(engine)
        assert kept(after, columns) == kept(before, columns), f"between {revision} and the newest"
    held = world.step(going_on, "a")
    world.database.write(lambda s: claims.succeed(s, held.id, held.attempt, [world.file("a")], {}))
    assert world.finish_job(going_on).state == "succeeded"
