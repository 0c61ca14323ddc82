"""Bring the database to a revision of the schema, and refuse to run on another: `python -m jobs.migrate`."""

import argparse
import importlib.util
import sys
from functools import lru_cache
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, select

from jobs.database import GRAPH_LOCK, connect
from jobs.errors import WrongRevision
from jobs.models import Base
from jobs.settings import get_settings


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate up to `revision`; several processes may try at once."""
    with engine.begin() as connection:
        _alone(connection)
        command.upgrade(_config(connection), revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Migrate down to `revision`; "base" drops every table."""
    with engine.begin() as connection:
        _alone(connection)
        command.downgrade(_config(connection), revision)


def differences(engine: Engine) -> list[Any]:
    """Where the database's tables differ from `jobs.models`, in Alembic's words; empty if nowhere."""
    with engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))


def check_revision(engine: Engine) -> None:
    """Raises `WrongRevision` unless the schema is the one that this code was written for."""
    with engine.connect() as connection:
        here = MigrationContext.configure(connection).get_current_revision()
    head, known = _revisions()
    if here == head:
        return
    if here is None or here in known:
        raise WrongRevision(f"the database is at revision {here or 'none'}, this code needs {head}", "run `potstill migrate`")
    raise WrongRevision(
        f"the database is at revision {here}, which this code (revision {head}) does not know: it was migrated by a newer potstill",
        "install the potstill that migrated it, then run `potstill migrate`",
    )


@lru_cache(maxsize=1)
def _revisions() -> tuple[str | None, frozenset[str]]:
    """The newest revision that this code knows, and all of them; read once, since a health check asks every few seconds."""
    scripts = ScriptDirectory.from_config(_config())
    return scripts.get_current_head(), frozenset(script.revision for script in scripts.walk_revisions())


def _alone(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(GRAPH_LOCK)))


def _config(connection: Connection | None = None) -> Config:
    """Alembic's settings, in code: an installed wheel has no alembic.ini."""
    spec = importlib.util.find_spec("migrations")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the package 'migrations' is not installed beside 'jobs'")
    config = Config()
    config.set_main_option("script_location", str(spec.submodule_search_locations[0]).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def main(arguments: list[str] | None = None) -> int:
    """`upgrade [REVISION]`, `downgrade REVISION` or `check`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.migrate", description=__doc__)
    parser.add_argument("action", nargs="?", choices=("upgrade", "downgrade", "check"), default="upgrade")
    parser.add_argument("revision", nargs="?", default="head")
    chosen = parser.parse_args(arguments)
    engine = connect(get_settings())
    if chosen.action == "check":
        try:
            check_revision(engine)
        except WrongRevision as error:
            print(f"{error.detail}: {error.hint}", file=sys.stderr)
            return 1
        return 0
    (upgrade if chosen.action == "upgrade" else downgrade)(engine, chosen.revision)
    return 0


if __name__ == "__main__":
    sys.exit(main())
