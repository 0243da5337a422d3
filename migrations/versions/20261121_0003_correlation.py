"""Which call made a request or a job, and the trace it belongs to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward. Locks are waited for briefly only (see env.py)."""
    op.add_column("unlearn_requests", sa.Column("call_id", sa.String(128), nullable=True))
    op.add_column("jobs", sa.Column("call_id", sa.String(128), nullable=True))
    op.add_column("jobs", sa.Column("trace_parent", sa.String(64), nullable=True))


def downgrade() -> None:
    """Go back."""
    with op.batch_alter_table("jobs") as batch:
        batch.drop_column("trace_parent")
        batch.drop_column("call_id")
    with op.batch_alter_table("unlearn_requests") as batch:
        batch.drop_column("call_id")
