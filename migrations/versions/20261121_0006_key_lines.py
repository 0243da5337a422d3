"""Keys that are rotated, and keys that are bound to networks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward. Locks are waited for briefly only (see env.py)."""
    with op.batch_alter_table("api_keys") as batch:
        batch.add_column(sa.Column("networks", sa.JSON(), nullable=False, server_default="[]"))
        batch.add_column(sa.Column("principal_id", sa.String(length=255), nullable=True))
    op.execute("update api_keys set principal_id = id")
    with op.batch_alter_table("api_keys") as batch:
        # They said what the keys that were there are; new ones say it themselves.
        batch.alter_column("networks", existing_type=sa.JSON(), server_default=None)
        batch.alter_column("principal_id", existing_type=sa.String(length=255), nullable=False)


def downgrade() -> None:
    """Go back; refused while keys are bound to networks, which the older form would forget."""
    bound = sa.text("select count(*) from api_keys where cast(networks as varchar(8)) <> '[]'")
    if op.get_bind().scalar(bound):
        raise RuntimeError("keys that are bound to networks would be good everywhere")
    with op.batch_alter_table("api_keys") as batch:
        batch.drop_column("principal_id")
        batch.drop_column("networks")
