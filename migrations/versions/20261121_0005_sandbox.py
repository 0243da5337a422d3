"""Converted uploads, and the walls around the runner of a job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KINDS = "kind in ('ingest', 'convert', 'prepare', 'unlearn', 'audit', 'oracle', 'bank')"
OLD_KINDS = "kind in ('ingest', 'prepare', 'unlearn', 'audit', 'oracle', 'bank')"


def upgrade() -> None:
    """Go forward. Locks are waited for briefly only (see env.py)."""
    op.add_column("versions", sa.Column("upload", sa.JSON(), nullable=True))
    op.add_column("workers", sa.Column("sandbox", sa.String(length=8), nullable=True))
    op.add_column("jobs", sa.Column("sandbox", sa.JSON(), nullable=True))
    _allow_kinds(KINDS)


def downgrade() -> None:
    """Go back; refused while an upload waits to be converted, which the older form cannot do."""
    waiting = "kind = 'convert' and status in ('queued', 'running')"
    if op.get_bind().scalar(sa.text(f"select count(*) from jobs where {waiting}")):  # noqa: S608
        raise RuntimeError("uploads that wait to be converted cannot be held by the older tables")
    op.execute("delete from jobs where kind = 'convert'")
    _allow_kinds(OLD_KINDS)
    op.drop_column("jobs", "sandbox")
    op.drop_column("workers", "sandbox")
    op.drop_column("versions", "upload")


def _allow_kinds(kinds: str) -> None:
    with op.batch_alter_table("jobs") as batch:
        batch.drop_constraint(op.f("ck_jobs_kind"), type_="check")
        batch.create_check_constraint(op.f("ck_jobs_kind"), kinds)
