"""API keys without a number of the pepper, which nothing read: a database has one pepper."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward. Locks are waited for briefly only (see env.py)."""
    op.drop_column("api_keys", "pepper_version")


def downgrade() -> None:
    """Go back; there was never another number."""
    column = sa.Column("pepper_version", sa.Integer(), server_default="1", nullable=False)
    op.add_column("api_keys", column)
