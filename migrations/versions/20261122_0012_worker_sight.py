"""What a worker sees: room on the disk of its runners, and rows whose bytes are missing."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward. Locks are waited for briefly only (see env.py)."""
    op.add_column("workers", sa.Column("scratch_free_share", sa.Double(), nullable=True))
    op.add_column("workers", sa.Column("missing_blobs", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Go back; living workers write their rows anew."""
    op.drop_column("workers", "missing_blobs")
    op.drop_column("workers", "scratch_free_share")
