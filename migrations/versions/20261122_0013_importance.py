"""What stored importance is, and whether a network has batch norm: what decides on unlearners."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward. Locks are waited for briefly only (see env.py)."""
    op.add_column("versions", sa.Column("importance", sa.JSON(), nullable=True))
    op.add_column("models", sa.Column("has_batchnorm", sa.Boolean(), nullable=True))


def downgrade() -> None:
    """Go back; of models and versions of before nothing was known."""
    op.drop_column("models", "has_batchnorm")
    op.drop_column("versions", "importance")
