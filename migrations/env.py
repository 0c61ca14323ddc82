"""Runs migrations on the connection that `jobs.migrate` hands over, in one transaction."""

from typing import Any, Literal

from alembic import context

from jobs.models import Base, UtcDateTime


def render(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """A new migration must not depend on classes that a later one may rename."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True, render_item=render
)
with context.begin_transaction():
    context.run_migrations()
