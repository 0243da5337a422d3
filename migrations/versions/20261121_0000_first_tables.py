"""First tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward. Locks are waited for briefly only (see env.py)."""
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("name", name=op.f("uq_tenants_name")),
    )
    op.create_table(
        "trash",
        sa.Column("blob", sa.String(length=512), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("blob", name=op.f("pk_trash")),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "api_keys",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("public_id", sa.String(length=255), nullable=False),
        sa.Column("secret_hmac", sa.String(length=255), nullable=False),
        sa.Column("pepper_version", sa.Integer(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_api_keys_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("public_id", name=op.f("uq_api_keys_public_id")),
    )
    op.create_table(
        "datasets",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("purpose", sa.String(length=255), nullable=True),
        sa.Column("class_names", sa.JSON(), nullable=True),
        sa.Column("status", sa.String(length=255), nullable=False),
        sa.Column("rejection", sa.JSON(), nullable=True),
        sa.Column("digest", sa.String(length=255), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("blob", sa.String(length=255), nullable=True),
        sa.Column("num_train", sa.Integer(), nullable=True),
        sa.Column("num_holdout", sa.Integer(), nullable=True),
        sa.Column("num_classes", sa.Integer(), nullable=True),
        sa.Column("modality", sa.String(length=255), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("meta", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status in ('validating', 'ready', 'rejected', 'deleted')",
            name=op.f("ck_datasets_status"),
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_datasets_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_datasets")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("principal", sa.String(length=255), nullable=False),
        sa.Column("method", sa.String(length=8), nullable=False),
        sa.Column("path", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_idempotency_keys_tenant_id")
        ),
        sa.PrimaryKeyConstraint(
            "tenant_id", "principal", "method", "path", "key", name=op.f("pk_idempotency_keys")
        ),
    )
    op.create_index(
        op.f("ix_idempotency_keys_expires_at"), "idempotency_keys", ["expires_at"], unique=False
    )
    op.create_table(
        "models",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=255), nullable=False),
        sa.Column("architecture", sa.JSON(), nullable=False),
        sa.Column("preprocessing", sa.JSON(), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=True),
        sa.Column("dataset_id", sa.String(length=255), nullable=False),
        sa.Column("holdout_dataset_id", sa.String(length=255), nullable=True),
        sa.Column("split_key", sa.String(length=255), nullable=False),
        sa.Column("current_version_id", sa.String(length=255), nullable=True),
        sa.Column("meta", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status in ('active', 'deleted')", name=op.f("ck_models_status")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "dataset_id"],
            ["datasets.tenant_id", "datasets.id"],
            name=op.f("fk_models_tenant_id_dataset_id"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "holdout_dataset_id"],
            ["datasets.tenant_id", "datasets.id"],
            name=op.f("fk_models_tenant_id_holdout_dataset_id"),
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_models_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_models")),
    )
    op.create_table(
        "records",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("dataset_id", sa.String(length=255), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("record_id", sa.String(length=512), nullable=False),
        sa.Column("label", sa.Integer(), nullable=False),
        sa.Column("split", sa.String(length=16), nullable=False),
        sa.Column("subject_hash", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "dataset_id"],
            ["datasets.tenant_id", "datasets.id"],
            name=op.f("fk_records_tenant_id_dataset_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "dataset_id", "row", name=op.f("pk_records")),
        sa.UniqueConstraint(
            "tenant_id",
            "dataset_id",
            "record_id",
            name=op.f("uq_records_tenant_id_dataset_id_record_id"),
        ),
    )
    op.create_index(
        op.f("ix_records_tenant_id_dataset_id_label"),
        "records",
        ["tenant_id", "dataset_id", "label"],
        unique=False,
    )
    op.create_index(
        op.f("ix_records_tenant_id_dataset_id_subject_hash"),
        "records",
        ["tenant_id", "dataset_id", "subject_hash"],
        unique=False,
    )
    op.create_table(
        "jobs",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("model_id", sa.String(length=255), nullable=True),
        sa.Column("dataset_id", sa.String(length=255), nullable=True),
        sa.Column("version_id", sa.String(length=255), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("phase", sa.String(length=255), nullable=True),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("eta_seconds", sa.Double(), nullable=True),
        sa.Column("rung", sa.JSON(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("policy", sa.String(length=16), nullable=True),
        sa.Column("unlearner", sa.JSON(), nullable=True),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("join_key", sa.String(length=64), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("runner_deaths", sa.Integer(), nullable=False),
        sa.Column("lost_leases", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=255), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("run_after", sa.Double(), nullable=False),
        sa.Column("dispatched_at", sa.Double(), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(status = 'running') = (lease_until is not null)", name=op.f("ck_jobs_lease")
        ),
        sa.CheckConstraint("kind in ('ingest', 'prepare', 'unlearn')", name=op.f("ck_jobs_kind")),
        sa.CheckConstraint(
            "status in ('queued', 'running', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_jobs_status"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "dataset_id"],
            ["datasets.tenant_id", "datasets.id"],
            name=op.f("fk_jobs_tenant_id_dataset_id"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "model_id"],
            ["models.tenant_id", "models.id"],
            name=op.f("fk_jobs_tenant_id_model_id"),
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_jobs_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_status_run_after"), "jobs", ["status", "run_after"], unique=False)
    op.create_index(
        op.f("ix_jobs_tenant_id_model_id_status"),
        "jobs",
        ["tenant_id", "model_id", "status"],
        unique=False,
    )
    op.create_index(
        "one_running_job_per_model",
        "jobs",
        ["model_id"],
        unique=True,
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_table(
        "rungs",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "job_id"],
            ["jobs.tenant_id", "jobs.id"],
            name=op.f("fk_rungs_tenant_id_job_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "job_id", "index", name=op.f("pk_rungs")),
    )
    op.create_table(
        "versions",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("model_id", sa.String(length=255), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.String(length=255), nullable=True),
        sa.Column("job_id", sa.String(length=255), nullable=True),
        sa.Column("status", sa.String(length=255), nullable=False),
        sa.Column("rejection", sa.JSON(), nullable=True),
        sa.Column("outcome", sa.String(length=255), nullable=True),
        sa.Column("digest", sa.String(length=255), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("num_parameters", sa.BigInteger(), nullable=True),
        sa.Column("blob", sa.String(length=255), nullable=True),
        sa.Column("importance_blob", sa.String(length=255), nullable=True),
        sa.Column("prepared_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status in ('validating', 'ready', 'rejected', 'withdrawn')",
            name=op.f("ck_versions_status"),
        ),
        sa.CheckConstraint("(number = 1) = (parent_id is null)", name=op.f("ck_versions_chain")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "job_id"],
            ["jobs.tenant_id", "jobs.id"],
            name=op.f("fk_versions_tenant_id_job_id"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "model_id", "parent_id"],
            ["versions.tenant_id", "versions.model_id", "versions.id"],
            name=op.f("fk_versions_tenant_id_model_id_parent_id"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "model_id"],
            ["models.tenant_id", "models.id"],
            name=op.f("fk_versions_tenant_id_model_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_versions")),
        sa.UniqueConstraint("tenant_id", "job_id", name=op.f("uq_versions_tenant_id_job_id")),
        sa.UniqueConstraint(
            "tenant_id", "model_id", "id", name=op.f("uq_versions_tenant_id_model_id_id")
        ),
        sa.UniqueConstraint(
            "tenant_id", "model_id", "number", name=op.f("uq_versions_tenant_id_model_id_number")
        ),
        sa.UniqueConstraint("tenant_id", "parent_id", name=op.f("uq_versions_tenant_id_parent_id")),
    )
    op.create_table(
        "baselines",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("version_id", sa.String(length=255), nullable=False),
        sa.Column("findings", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "version_id"],
            ["versions.tenant_id", "versions.id"],
            name=op.f("fk_baselines_tenant_id_version_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "version_id", name=op.f("pk_baselines")),
    )
    op.create_table(
        "unlearn_requests",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("model_id", sa.String(length=255), nullable=False),
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=255), nullable=False),
        sa.Column("outcome", sa.String(length=255), nullable=True),
        sa.Column("selector", sa.String(length=16), nullable=False),
        sa.Column("selector_class", sa.Integer(), nullable=True),
        sa.Column("rows", sa.LargeBinary(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("policy", sa.String(length=16), nullable=False),
        sa.Column("unlearner", sa.JSON(), nullable=True),
        sa.Column("reason", sa.String(length=255), nullable=True),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.Column("applied_version_id", sa.String(length=255), nullable=True),
        sa.Column("meta", sa.JSON(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status in ('queued', 'processing', 'applied', 'completed', "
            "'needs_attention', 'cancelled')",
            name=op.f("ck_unlearn_requests_status"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "applied_version_id"],
            ["versions.tenant_id", "versions.id"],
            name=op.f("fk_unlearn_requests_tenant_id_applied_version_id"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "job_id"],
            ["jobs.tenant_id", "jobs.id"],
            name=op.f("fk_unlearn_requests_tenant_id_job_id"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "model_id"],
            ["models.tenant_id", "models.id"],
            name=op.f("fk_unlearn_requests_tenant_id_model_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_unlearn_requests")),
    )
    op.create_index(
        op.f("ix_unlearn_requests_tenant_id_job_id"),
        "unlearn_requests",
        ["tenant_id", "job_id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_unlearn_requests_tenant_id_model_id_status"),
        "unlearn_requests",
        ["tenant_id", "model_id", "status"],
        unique=False,
    )


def downgrade() -> None:
    """Go back."""
    op.drop_index(
        op.f("ix_unlearn_requests_tenant_id_model_id_status"), table_name="unlearn_requests"
    )
    op.drop_index(op.f("ix_unlearn_requests_tenant_id_job_id"), table_name="unlearn_requests")
    op.drop_table("unlearn_requests")
    op.drop_table("baselines")
    op.drop_table("versions")
    op.drop_table("rungs")
    op.drop_index(
        "one_running_job_per_model",
        table_name="jobs",
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    )
    op.drop_index(op.f("ix_jobs_tenant_id_model_id_status"), table_name="jobs")
    op.drop_index(op.f("ix_jobs_status_run_after"), table_name="jobs")
    op.drop_table("jobs")
    op.drop_index(op.f("ix_records_tenant_id_dataset_id_subject_hash"), table_name="records")
    op.drop_index(op.f("ix_records_tenant_id_dataset_id_label"), table_name="records")
    op.drop_table("records")
    op.drop_table("models")
    op.drop_index(op.f("ix_idempotency_keys_expires_at"), table_name="idempotency_keys")
    op.drop_table("idempotency_keys")
    op.drop_table("datasets")
    op.drop_table("api_keys")
    op.drop_table("workers")
    op.drop_table("trash")
    op.drop_table("tenants")
