"""Jobs and steps have an owner, workers are divided between owners, and steps of one shape can be compared."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STEP_INDEXES = {
    "ix_steps_owner_queue_started_at": ["owner", "queue", "started_at"],
    "ix_steps_shape_state_finished_at": ["shape", "state", "finished_at"],
    "ix_steps_queue_state_finished_at": ["queue", "state", "finished_at"],
}


def upgrade() -> None:
    op.add_column("jobs", sa.Column("owner", sa.String(), server_default="", nullable=False))
    op.create_index("ix_jobs_owner_id", "jobs", ["owner", "id"], unique=False)
    op.add_column("steps", sa.Column("owner", sa.String(), server_default="", nullable=False))
    op.add_column("steps", sa.Column("shape", sa.String(), server_default="", nullable=False))
    op.drop_index("ix_steps_claim_order", "steps")
    op.create_index(
        "ix_steps_claim_order", "steps", ["state", "queue", "engine", "priority", "owner", "turn", "ready_at", "id"], unique=False
    )
    running = sa.text("state = 'running'")
    op.create_index("ix_steps_running", "steps", ["queue", "owner"], unique=False, sqlite_where=running, postgresql_where=running)
    for name, columns in STEP_INDEXES.items():
        op.create_index(name, "steps", columns, unique=False)


def downgrade() -> None:
    for name in ("ix_steps_running", *STEP_INDEXES):
        op.drop_index(name, "steps")
    op.drop_index("ix_steps_claim_order", "steps")
    op.create_index("ix_steps_claim_order", "steps", ["state", "queue", "engine", "priority", "turn", "ready_at", "id"], unique=False)
    op.drop_column("steps", "shape")
    op.drop_column("steps", "owner")
    op.drop_index("ix_jobs_owner_id", "jobs")
    op.drop_column("jobs", "owner")
