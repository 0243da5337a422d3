"""Tables and their constraints; no behaviour.

Every table carries ``tenant_id``, and every reference is composite ``(tenant_id, id)``, so a
reference across tenants cannot be stored. Leases and the like are seconds since the epoch on the
database's clock (``clock.now``), everything for people is a UTC timestamp.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

import numpy as np
from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .. import correlation
from . import status
from .columns import Rows, UTCDateTime

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
Document = dict[str, Any]

CHAIN = (
    "(role = 'chain' and number is not null and (number = 1) = (parent_id is null)"
    " and oracle_of_id is null)"
    " or (role = 'oracle' and number is null and parent_id is null and oracle_of_id is not null)"
)
"""Versions form one chain; oracles stand beside it."""


def _now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Declarative base with stable constraint names."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar = {
        Document: JSON(none_as_null=True),
        datetime: UTCDateTime,
        str: String(255),
    }


def _owned(*columns: str, table: str) -> ForeignKeyConstraint:
    """Composite reference to ``table`` within the same tenant."""
    return ForeignKeyConstraint(["tenant_id", *columns], [f"{table}.tenant_id", f"{table}.id"])


class Tenant(Base):
    """Owner of everything else."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(default=_now)


class ApiKey(Base):
    """A machine's credential; only a keyed hash of the secret is stored."""

    __tablename__ = "api_keys"
    __table_args__ = (ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),)

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    public_id: Mapped[str] = mapped_column(unique=True)
    """The 12 characters after ``lth_``; they find the row."""
    secret_hmac: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(JSON)
    networks: Mapped[list[str]] = mapped_column(JSON, default=list)
    """CIDR ranges that it may be used from; anywhere if empty."""
    principal_id: Mapped[str]
    """The first key of the line that rotation made; its own id where it is the first."""
    created_at: Mapped[datetime] = mapped_column(default=_now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Dataset(Base):
    """A registered set of records. ``blob`` is the canonical parquet, without subjects."""

    __tablename__ = "datasets"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        CheckConstraint(f"status in ({status.values(status.DatasetStatus)})", name="status"),
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    purpose: Mapped[str | None]
    class_names: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    status: Mapped[str] = mapped_column(default="validating")
    rejection: Mapped[Document | None]
    """``{"code", "detail"}`` when rejected."""
    digest: Mapped[str]
    """sha256 of the bytes as uploaded."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    blob: Mapped[str | None]
    """Key of the upload while validating, of the canonical file afterwards; None once deleted."""
    num_train: Mapped[int | None]
    num_holdout: Mapped[int | None]
    num_classes: Mapped[int | None]
    modality: Mapped[str | None]
    details: Mapped[Document] = mapped_column(default=dict)
    meta: Mapped[Document] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(default=_now)
    deleted_at: Mapped[datetime | None]


class Record(Base):
    """Index of a dataset: record id and keyed hash of the subject -> row number."""

    __tablename__ = "records"
    __table_args__ = (
        _owned("dataset_id", table="datasets"),
        UniqueConstraint("tenant_id", "dataset_id", "record_id"),
        Index(None, "tenant_id", "dataset_id", "subject_hash"),
        Index(None, "tenant_id", "dataset_id", "label"),
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    dataset_id: Mapped[str] = mapped_column(primary_key=True)
    row: Mapped[int] = mapped_column(primary_key=True)
    record_id: Mapped[str] = mapped_column(String(512))
    label: Mapped[int]
    split: Mapped[str] = mapped_column(String(16))
    subject_hash: Mapped[str | None] = mapped_column(String(64))


class Model(Base):
    """A named thing with versions."""

    __tablename__ = "models"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        _owned("dataset_id", table="datasets"),
        _owned("holdout_dataset_id", table="datasets"),
        CheckConstraint(f"status in ({status.values(status.ModelStatus)})", name="status"),
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    status: Mapped[str] = mapped_column(default="active")
    architecture: Mapped[Document]
    has_batchnorm: Mapped[bool | None]
    """Whether its network keeps running statistics; None where nobody looked."""
    preprocessing: Mapped[Document]
    recipe: Mapped[Document | None]
    dataset_id: Mapped[str | None]
    """Its training data; None where that stays elsewhere and only its importance was sent."""
    holdout_dataset_id: Mapped[str | None]
    """Equal to ``dataset_id`` when that dataset's own holdout split is used."""
    split_key: Mapped[str]
    """Hex key that splits the holdout into its tuning and judging halves, once and for all."""
    current_version_id: Mapped[str | None]
    """What ``@serving`` names."""
    bank_blob: Mapped[str | None]
    """Reference models over the training records in force; dropped when one of them must go."""
    bank_models: Mapped[int | None]
    """How many there are in it."""
    meta: Mapped[Document] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(default=_now)
    deleted_at: Mapped[datetime | None]


class Version(Base):
    """Immutable weights + digest + lineage; or, beside the chain, an oracle to compare with."""

    __tablename__ = "versions"
    __table_args__ = (
        _owned("model_id", table="models"),
        ForeignKeyConstraint(
            ["tenant_id", "model_id", "parent_id"],
            ["versions.tenant_id", "versions.model_id", "versions.id"],
        ),
        ForeignKeyConstraint(
            ["tenant_id", "model_id", "oracle_of_id"],
            ["versions.tenant_id", "versions.model_id", "versions.id"],
        ),
        _owned("job_id", table="jobs"),
        UniqueConstraint("tenant_id", "model_id", "id"),
        UniqueConstraint("tenant_id", "model_id", "number"),
        UniqueConstraint("tenant_id", "job_id"),
        UniqueConstraint("tenant_id", "parent_id"),
        CheckConstraint(f"status in ({status.values(status.VersionStatus)})", name="status"),
        CheckConstraint(f"role in ({status.values(status.VersionRole)})", name="role"),
        CheckConstraint(CHAIN, name="chain"),
        Index(None, "tenant_id", "oracle_of_id"),
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str]
    role: Mapped[str] = mapped_column(String(16), default="chain")
    """``chain``, or ``oracle``: trained to compare with, never served."""
    number: Mapped[int | None]
    """Place in the chain, from 1; None for an oracle."""
    parent_id: Mapped[str | None]
    """The version it was made from; unique, so versions of a model form one chain."""
    oracle_of_id: Mapped[str | None]
    """The version whose forget sets this oracle was trained without."""
    job_id: Mapped[str | None]
    """The job that made it; None for the upload."""
    status: Mapped[str] = mapped_column(default="validating")
    rejection: Mapped[Document | None]
    upload: Mapped[Document | None]
    """``format, digest, size_bytes, scan`` of the file as it was sent; None for a child."""
    outcome: Mapped[str | None]
    digest: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    num_parameters: Mapped[int | None] = mapped_column(BigInteger)
    blob: Mapped[str | None]
    importance_blob: Mapped[str | None]
    """Derived state over the version's training records; dropped when one of them must go.

    Where they stay elsewhere it came along, unchecked until the version is ready.
    """
    importance: Mapped[Document | None]
    """``estimator, num_records, stale`` of it; None where there is none, or it is unchecked."""
    prepared_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=_now)
    withdrawn_at: Mapped[datetime | None]


class Request(Base):
    """The legal case: whom or what to forget, by when."""

    __tablename__ = "unlearn_requests"
    __table_args__ = (
        _owned("model_id", table="models"),
        _owned("job_id", table="jobs"),
        _owned("applied_version_id", table="versions"),
        _owned("samples_dataset_id", table="datasets"),
        Index(None, "tenant_id", "model_id", "status"),
        Index(None, "tenant_id", "job_id"),
        Index(
            "one_open_request_per_samples",
            "tenant_id",
            "samples_dataset_id",
            unique=True,
            sqlite_where=text("status in ('queued', 'processing')"),
            postgresql_where=text("status in ('queued', 'processing')"),
        ),
        CheckConstraint(f"status in ({status.values(status.RequestStatus)})", name="status"),
        CheckConstraint(f"purpose in ({status.values(status.RequestPurpose)})", name="purpose"),
        CheckConstraint(
            "(selector = 'samples') = (samples_dataset_id is not null)", name="samples"
        ),
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str]
    job_id: Mapped[str]
    status: Mapped[str] = mapped_column(default="queued")
    outcome: Mapped[str | None]
    selector: Mapped[str] = mapped_column(String(16))
    """``record_ids``, ``subject``, ``class`` or ``samples``."""
    selector_class: Mapped[int | None]
    samples_dataset_id: Mapped[str | None]
    """Dataset that came with the request; erased when that is completed or taken back."""
    purpose: Mapped[str] = mapped_column(String(16), default="erasure")
    """``erasure``, or ``poison_removal`` where the records are the known part of a poison."""
    rows: Mapped[np.ndarray] = mapped_column(Rows)
    """Training rows to forget, already-forgotten ones left out; the exclusion mask once applied.

    Of ``samples`` they are rows of the dataset that came along, and exclude nothing.
    """
    counts: Mapped[Document] = mapped_column(default=dict)
    """``num_records, num_duplicates, num_missing, num_holdout, num_already_applied``."""
    policy: Mapped[str] = mapped_column(String(16))
    unlearner: Mapped[Document | None]
    reason: Mapped[str | None]
    problem: Mapped[Document | None]
    """``{"code", "detail"}`` when a person must act."""
    applied_version_id: Mapped[str | None]
    meta: Mapped[Document] = mapped_column(default=dict)
    call_id: Mapped[str | None] = mapped_column(String(128), default=correlation.request_id)
    """``X-Request-Id`` of the call that made it."""
    received_at: Mapped[datetime]
    due_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(default=_now)
    completed_at: Mapped[datetime | None]


class Job(Base):
    """The compute: one run of the ladder against one version, or of any other ``kind``."""

    __tablename__ = "jobs"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        _owned("model_id", table="models"),
        _owned("dataset_id", table="datasets"),
        CheckConstraint(f"status in ({status.values(status.JobStatus)})", name="status"),
        CheckConstraint(f"kind in ({status.values(status.JobKind)})", name="kind"),
        CheckConstraint("(status = 'running') = (lease_until is not null)", name="lease"),
        Index(
            "one_running_job_per_model",
            "model_id",
            unique=True,
            sqlite_where=text("status = 'running'"),
            postgresql_where=text("status = 'running'"),
        ),
        ForeignKeyConstraint(["tenant_id", "retry_of_id"], ["jobs.tenant_id", "jobs.id"]),
        Index(None, "status", "run_after"),
        Index(None, "tenant_id", "status"),
        Index(None, "tenant_id", "model_id", "status", "join_key"),
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    model_id: Mapped[str | None]
    dataset_id: Mapped[str | None]
    """ingest: what to read; unlearn: the records that came with the request, if any did."""
    version_id: Mapped[str | None]
    """unlearn: the base, fixed at claim; else the version to prepare, audit or compare with."""
    status: Mapped[str] = mapped_column(String(16), default="queued")
    revision: Mapped[int] = mapped_column(default=0)
    """Grows with every change that a reader can see; the job's ETag."""
    phase: Mapped[str | None]
    progress: Mapped[float] = mapped_column(default=0.0)
    eta_seconds: Mapped[float | None]
    rung: Mapped[Document | None]
    """``{"index", "of", "method"}`` of the rung at work."""
    metrics: Mapped[Document] = mapped_column(default=dict)
    policy: Mapped[str | None] = mapped_column(String(16))
    unlearner: Mapped[Document | None]
    options: Mapped[Document] = mapped_column(default=dict)
    """What the caller chose: ``seed, batch_size, time_limit_seconds`` and what the kind takes."""
    join_key: Mapped[str | None] = mapped_column(String(64))
    """Digest of model, policy, unlearner and options; equal queued jobs are shared."""
    retry_of_id: Mapped[str | None]
    """The failed job whose requests, or whose question, this one took over."""
    priority: Mapped[int] = mapped_column(default=0)
    """Among the jobs of its tenant the greater goes first."""
    due_at: Mapped[datetime | None]
    """The earliest day that a request it serves is due."""
    attempts: Mapped[int] = mapped_column(default=0)
    """Counted at claim."""
    runner_deaths: Mapped[int] = mapped_column(default=0)
    lost_leases: Mapped[int] = mapped_column(default=0)
    epoch: Mapped[int] = mapped_column(default=0)
    """Fencing token: grows with every claim, and every write of an attempt matches on it."""
    lease_owner: Mapped[str | None]
    lease_until: Mapped[float | None]
    run_after: Mapped[float] = mapped_column(default=0.0)
    held_for: Mapped[str | None] = mapped_column(String(32))
    """Why it waits until ``run_after``: ``backoff`` or ``storage_full``."""
    dispatched_at: Mapped[float | None]
    call_id: Mapped[str | None] = mapped_column(String(128), default=correlation.request_id)
    """``X-Request-Id`` of the call that made it."""
    trace_parent: Mapped[str | None] = mapped_column(String(64), default=correlation.trace_parent)
    """W3C ``traceparent`` of that call; the job's own trace links to it."""
    checkpoint_blob: Mapped[str | None]
    """State of a training that was interrupted; dropped when the job ends."""
    checkpoint_digest: Mapped[str | None] = mapped_column(String(64))
    cancel_requested_at: Mapped[datetime | None]
    result: Mapped[Document | None]
    error: Mapped[Document | None]
    sandbox: Mapped[Document | None]
    """``level, walls`` around the runner of the last attempt."""
    created_at: Mapped[datetime] = mapped_column(default=_now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Rung(Base):
    """Everything that was measured on one rung of a finished job (``core.findings.Rung``)."""

    __tablename__ = "rungs"
    __table_args__ = (_owned("job_id", table="jobs"),)

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[Document]


class Baseline(Base):
    """Findings of ``prepare`` on a version (list of ``core.findings.Finding``)."""

    __tablename__ = "baselines"
    __table_args__ = (_owned("version_id", table="versions"),)

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    version_id: Mapped[str] = mapped_column(primary_key=True)
    findings: Mapped[list[Document]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=_now)


class AuditReport(Base):
    """Findings of one audit job on a version (list of ``core.findings.Finding``)."""

    __tablename__ = "audits"
    __table_args__ = (
        _owned("version_id", table="versions"),
        _owned("job_id", table="jobs"),
        _owned("request_id", table="unlearn_requests"),
        UniqueConstraint("tenant_id", "job_id"),
        Index(None, "tenant_id", "version_id"),
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    version_id: Mapped[str]
    job_id: Mapped[str]
    request_id: Mapped[str | None]
    """Whose forget set was the subject; None for all that the version has forgotten."""
    options: Mapped[Document] = mapped_column(default=dict)
    """``audits, seed, batch_size, time_limit_seconds`` in force."""
    findings: Mapped[list[Document]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=_now)


class Upload(Base):
    """A file that arrives in pieces, until a model or a dataset takes it."""

    __tablename__ = "uploads"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        CheckConstraint(f"status in ({status.values(status.UploadStatus)})", name="status"),
        CheckConstraint("received_bytes between 0 and size_bytes", name="received_bytes"),
        Index(None, "status", "touched_at"),
        Index(None, "tenant_id", "status"),
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(String(16), default="created")
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    """As announced when it was created."""
    received_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Never more than would survive a power cut."""
    announced_digest: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 in hex that the bytes must have."""
    digest: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 in hex of the bytes, once all are there."""
    upload_metadata: Mapped[str | None] = mapped_column(String(4096))
    """The client's own words, given back as they came; None once it ended."""
    failure: Mapped[Document | None]
    """``{"code", "detail"}`` when failed."""
    used_by: Mapped[str | None]
    """Id of what took the bytes."""
    created_at: Mapped[datetime] = mapped_column(default=_now)
    touched_at: Mapped[datetime] = mapped_column(default=_now)


class IdempotencyKey(Base):
    """The remembered answer of a POST, written in the transaction of what it created."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        Index(None, "expires_at"),
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    principal: Mapped[str] = mapped_column(primary_key=True)
    method: Mapped[str] = mapped_column(String(8), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    """Keyed hash of what the caller sent."""
    fingerprint: Mapped[str] = mapped_column(String(64))
    status_code: Mapped[int]
    headers: Mapped[Document]
    body: Mapped[Document]
    created_at: Mapped[datetime] = mapped_column(default=_now)
    expires_at: Mapped[datetime]


class Worker(Base):
    """A live worker, for readiness; belongs to the machine, not to a tenant."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    slots: Mapped[int]
    sandbox: Mapped[str | None] = mapped_column(String(8))
    """Level of the walls around its runners."""
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of its accelerator, or of a runner where there is none; None if it does not compute."""
    scratch_free_share: Mapped[float | None]
    """Of the disk that its runners write to; None if that was not readable."""
    missing_blobs: Mapped[int | None]
    """Files that rows count on and its last search did not find; None before the first search."""
    seen_at: Mapped[float]


class Trash(Base):
    """Blob keys whose rows are gone; the sweeper removes the bytes, then the row."""

    __tablename__ = "trash"

    blob: Mapped[str] = mapped_column(String(512), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=_now)


class PepperCheck(Base):
    """What the pepper makes of a fixed text: the one row tells it from another pepper."""

    __tablename__ = "pepper_checks"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, default=1)
    digest: Mapped[str] = mapped_column(String(64))
