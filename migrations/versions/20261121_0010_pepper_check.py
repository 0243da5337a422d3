"""What tells the right pepper from another; noted by the first process that starts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward. Locks are waited for briefly only (see env.py)."""
    op.create_table(
        "pepper_checks",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_pepper_checks_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pepper_checks")),
    )


def downgrade() -> None:
    """Go back; it is noted anew."""
    op.drop_table("pepper_checks")
