"""Jobs: why they wait, where their training stopped, whose turn they are, what they try again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

DUE = """
update jobs set due_at = (
  select min(due_at) from unlearn_requests
  where unlearn_requests.tenant_id = jobs.tenant_id and unlearn_requests.job_id = jobs.id
) where kind = 'unlearn'
"""


def upgrade() -> None:
    """Go forward. Locks are waited for briefly only (see env.py)."""
    with op.batch_alter_table("jobs") as batch:
        batch.add_column(sa.Column("retry_of_id", sa.String(length=255), nullable=True))
        batch.add_column(sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("due_at", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("held_for", sa.String(length=32), nullable=True))
        batch.add_column(sa.Column("checkpoint_blob", sa.String(length=255), nullable=True))
        batch.add_column(sa.Column("checkpoint_digest", sa.String(length=64), nullable=True))
        batch.create_foreign_key(
            op.f("fk_jobs_tenant_id_retry_of_id"),
            "jobs",
            ["tenant_id", "retry_of_id"],
            ["tenant_id", "id"],
        )
    with op.batch_alter_table("jobs") as batch:
        # It said whose turn the rows that were there are; new ones say it themselves.
        batch.alter_column("priority", existing_type=sa.Integer(), server_default=None)
    op.execute(DUE)


def downgrade() -> None:
    """Go back; interrupted trainings start from zero, retries forget what they try again."""
    with op.batch_alter_table("jobs") as batch:
        batch.drop_constraint(op.f("fk_jobs_tenant_id_retry_of_id"), type_="foreignkey")
        for name in ("checkpoint_digest", "checkpoint_blob", "held_for", "due_at", "priority"):
            batch.drop_column(name)
        batch.drop_column("retry_of_id")
