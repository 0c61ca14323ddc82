"""Jobs may be pinned, artifacts may be gone, and files may be condemned."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("pinned", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("artifacts", sa.Column("gone_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "condemned",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("doomed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("sha256", name="pk_condemned"),
    )
    op.create_index("ix_condemned_at", "condemned", ["at"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_condemned_at", "condemned")
    op.drop_table("condemned")
    op.drop_column("artifacts", "gone_at")
    op.drop_column("jobs", "pinned")
