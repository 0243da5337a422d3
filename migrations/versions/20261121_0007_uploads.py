"""Uploads that can be resumed, and their scope."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

STATUSES = (
    "status in ('created', 'receiving', 'received', 'verified', 'failed', 'expired', 'aborted')"
)
SCOPE = "uploads:write"
SENDING = {"models:write", "datasets:write"}


def upgrade() -> None:
    """Go forward. Locks are waited for briefly only (see env.py)."""
    op.create_table(
        "uploads",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("received_bytes", sa.BigInteger(), nullable=False),
        sa.Column("announced_digest", sa.String(length=64), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("upload_metadata", sa.String(length=4096), nullable=True),
        sa.Column("failure", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("used_by", sa.String(length=255), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(STATUSES, name=op.f("ck_uploads_status")),
        sa.CheckConstraint(
            "received_bytes between 0 and size_bytes", name=op.f("ck_uploads_received_bytes")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_uploads_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_uploads")),
    )
    op.create_index(op.f("ix_uploads_status_touched_at"), "uploads", ["status", "touched_at"])
    op.create_index(op.f("ix_uploads_tenant_id_status"), "uploads", ["tenant_id", "status"])
    # Who may send whole files may send them in pieces, too.
    _change_scopes(lambda scopes: {*scopes, SCOPE} if scopes & SENDING else scopes)


def downgrade() -> None:
    """Go back; unfinished uploads are lost."""
    op.drop_table("uploads")
    _change_scopes(lambda scopes: scopes - {SCOPE})


def _change_scopes(change: Callable[[set[str]], set[str]]) -> None:
    keys = sa.table(
        "api_keys", *map(sa.column, ("tenant_id", "id")), sa.column("scopes", sa.JSON())
    )
    for tenant_id, key_id, scopes in op.get_bind().execute(sa.select(keys)).all():
        changed = sorted(change(set(scopes)))
        if changed != sorted(scopes):
            mine = sa.and_(keys.c.tenant_id == tenant_id, keys.c.id == key_id)
            op.execute(keys.update().where(mine).values(scopes=changed))
