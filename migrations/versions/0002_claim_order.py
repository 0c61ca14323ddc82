"""Steps know their turn and the engine that planned them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("steps", sa.Column("turn", sa.Integer(), server_default="0", nullable=False))
    op.add_column("steps", sa.Column("engine", sa.String(), server_default="", nullable=False))
    op.drop_index("ix_steps_state_queue_priority_ready_at_id", "steps")
    op.create_index("ix_steps_claim_order", "steps", ["state", "queue", "engine", "priority", "turn", "ready_at", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_steps_claim_order", "steps")
    op.create_index("ix_steps_state_queue_priority_ready_at_id", "steps", ["state", "queue", "priority", "ready_at", "id"], unique=False)
    op.drop_column("steps", "engine")
    op.drop_column("steps", "turn")
