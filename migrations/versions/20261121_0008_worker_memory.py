"""What a worker computes in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward. Locks are waited for briefly only (see env.py)."""
    op.add_column("workers", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Go back; living workers write their rows anew."""
    op.drop_column("workers", "memory_bytes")
