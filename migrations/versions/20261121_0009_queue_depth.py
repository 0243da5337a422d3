"""Indexes for what a request looks up in a long queue."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


OLD = "ix_jobs_tenant_id_model_id_status"
NEW = "ix_jobs_tenant_id_model_id_status_join_key"


def upgrade() -> None:
    """Go forward. Locks are waited for briefly only (see env.py)."""
    op.create_index("ix_jobs_tenant_id_status", "jobs", ["tenant_id", "status"])
    op.create_index(NEW, "jobs", ["tenant_id", "model_id", "status", "join_key"])
    op.drop_index(OLD, "jobs")


def downgrade() -> None:
    """Go back; nothing is lost but time."""
    op.create_index(OLD, "jobs", ["tenant_id", "model_id", "status"])
    op.drop_index(NEW, "jobs")
    op.drop_index("ix_jobs_tenant_id_status", "jobs")
