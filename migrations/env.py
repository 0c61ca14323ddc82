"""Runs migrations on the connection that `jobs.migrate` hands over, in one transaction."""

from alembic import context
from jobs.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
