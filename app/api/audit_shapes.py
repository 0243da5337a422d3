"""Shapes of audits and of models that are trained to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.findings import Finding

from ..store import tables
from ..store.references import MOST_MODELS
from . import paths
from .shapes import Links, Shape

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63, description="Of all randomness.")]
BatchSize = Annotated[int, Field(ge=1, le=65_536, description="Records per forward pass.")]
TimeLimit = Annotated[
    float, Field(gt=0, le=7 * 86_400, description="Wall-clock limit of the job in seconds.")
]
Choice = Annotated[str, StringConstraints(min_length=1, max_length=64)] | dict[str, Any]


class AuditCreate(Shape):
    """Which audits to run on a version, and whose traces they look for."""

    audits: list[Choice] | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Names of `GET /audits`, or names with their options. All whose needs are met, "
        "if left out.",
    )
    request: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None,
        description="Id of an unlearn request of this model whose records are looked for, whatever "
        "its state; all that the version has forgotten, if left out.",
    )
    seed: Seed = 0
    batch_size: BatchSize = 256
    time_limit_seconds: TimeLimit = 21_600


class OracleCreate(Shape):
    """How to train an oracle; everything else is the model's recipe."""

    seed: Seed = 0
    time_limit_seconds: TimeLimit = 21_600


class ReferenceBankCreate(Shape):
    """How many reference models to train."""

    models: Annotated[int, Field(ge=2, le=MOST_MODELS, multiple_of=2)] = Field(
        4, description="They come in pairs, each trained on one half of the records."
    )
    seed: Seed = 0
    batch_size: BatchSize = 256
    time_limit_seconds: TimeLimit = 21_600


class AuditReport(Shape):
    """What one audit job found on a version."""

    object: Literal["audit_report"] = "audit_report"
    id: str
    model: str
    version: str
    job: str
    request: str | None = Field(
        description="Whose records were looked for; none for all that the version has forgotten."
    )
    audits: list[dict[str, Any]] = Field(description="With all their options.")
    seed: int
    batch_size: int
    time_limit_seconds: float
    findings: list[Finding]
    created_at: datetime
    links: Links


def reports(session: Session, rows: Sequence[tables.AuditReport]) -> list[AuditReport]:
    """Return the shapes of report rows."""
    if not rows:
        return []
    chosen = select(tables.Version).where(
        tables.Version.tenant_id == rows[0].tenant_id,
        tables.Version.id.in_({row.version_id for row in rows}),
    )
    versions = {version.id: version for version in session.scalars(chosen)}
    return [_report(row, versions[row.version_id]) for row in rows]


def _report(row: tables.AuditReport, version: tables.Version) -> AuditReport:
    links = {"job": f"/jobs/{row.job_id}", "version": paths.version(version)}
    if row.request_id is not None:
        links["request"] = f"/unlearn-requests/{row.request_id}"
    return AuditReport(
        id=row.id,
        model=version.model_id,
        version=row.version_id,
        job=row.job_id,
        request=row.request_id,
        **row.options,
        findings=[Finding.model_validate(finding) for finding in row.findings],
        created_at=row.created_at,
        links=links,
    )
