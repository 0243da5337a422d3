"""Versions of a model: lineage, findings, and the weights themselves."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.findings import Finding, Gate, Processes

from ..store import audits, models, tables
from ..store.errors import Conflict, Gone, NotFound, ServiceError, Unavailable
from ..store.keys import Caller
from ..store.status import VersionRole
from . import checkpoint, paths
from .audit_shapes import AuditReport, reports
from .deps import ReadSession, requires
from .ids import ModelId, VersionRef
from .listing import Pages, page_of
from .problems import RangeNotSatisfiable, problems
from .shapes import Links, Page, Rejection, Shape
from .waiting import NOT_MODIFIED

router = APIRouter(tags=["models"])
SHOWN_AUDITS = 10


class VersionUpload(Shape):
    """The file as it was sent, and what was found in it."""

    format: str = Field(description="`safetensors`, or `pytorch`, which is converted once.")
    digest: str = Field(description="`sha256:` and the digest of the file as it was sent.")
    size_bytes: int
    scan: str = Field(
        description="`pending` while it is quarantined, then `passed` or `refused`; `rejection` "
        "says why."
    )
    sandbox: str | None = Field(
        None, description="How well what converted it was walled in, as in `GET /readyz`."
    )
    unwrapped: list[str] = Field(
        default_factory=list, description="Names under which the state dict lay."
    )
    prefix: str = Field("", description="Taken off all names, such as `module.`.")


class StoredImportance(Shape):
    """How much each parameter matters for the training records: kept for the next request."""

    estimator: str = Field(description="An unlearner takes one of its own estimator alone.")
    num_records: int = Field(description="It was measured on; forgotten ones are subtracted.")
    stale: int = Field(description="Requests since it was measured.")


class Version(Shape):
    """Immutable weights, with where they came from; or an oracle to compare such with."""

    object: Literal["version"] = "version"
    id: str
    model: str
    role: str = Field(description="`chain`, or `oracle`: trained to compare with, never in force.")
    number: int | None = Field(
        description="1 is the upload; each child is one more. An oracle has none."
    )
    status: str = Field(description="`validating`, `ready`, `rejected` or `withdrawn`.")
    parent: str | None
    oracle_of: str | None = Field(
        description="The version whose forgotten records this oracle never saw."
    )
    job: str | None = Field(description="The job that made it; none for the upload.")
    outcome: str | None = Field(description="`erased_exact` or `erased_approximate` for a child.")
    digest: str = Field(
        description="`sha256:` and the digest of the checkpoint in hex; of the file as it was sent "
        "until that is converted."
    )
    size_bytes: int
    num_parameters: int | None
    importance: StoredImportance | None = Field(
        description="None if none is stored, or while it is not measured or checked yet. Where the "
        "training data stays elsewhere, importance of means per batch (`fisher_batch`, `mas`) goes "
        "with the first request that is published: no record can be subtracted from it."
    )
    rejection: Rejection
    upload: VersionUpload | None = Field(description="None for a version that a job made.")
    created_at: datetime
    prepared_at: datetime | None = Field(description="When baseline findings were measured.")
    withdrawn_at: datetime | None
    links: Links


class VersionWithFindings(Version):
    """A version with everything that was measured on it."""

    baseline: list[Finding] | None = Field(description="Measured when it was prepared.")
    findings: list[Finding] = Field(description="Of the rung that made it.")
    gates: list[Gate] = Field(description="Of the rung that made it.")
    earlier: dict[str, list[Gate]] = Field(
        description="Id of an earlier request, and gates on what it had forgotten, looked at again "
        "under this version. They block nothing; one that failed is named in the job's `reason`."
    )
    processes: Processes | None = Field(
        description="How many shared the trainings of that rung, where the worker was set to "
        "several."
    )
    audits: list[AuditReport] = Field(
        description="The last audits on demand, newest first; `links.audits` has all."
    )


@router.get(
    "/models/{model_id}/versions",
    operation_id="list_versions",
    response_model=Page[Version],
    responses=problems(NotFound),
)
def list_versions(
    caller: Annotated[Caller, requires("models:read")],
    model_id: ModelId,
    paging: Pages,
    session: ReadSession,
    http_request: Request,
    http_response: Response,
    role: Annotated[list[VersionRole] | None, Query(description="Repeatable.")] = None,
) -> Page[Version]:
    """List the versions of a model and their oracles, newest first."""
    models.get(session, caller.tenant_id, model_id)
    chosen = select(tables.Version).where(tables.Version.model_id == model_id)
    if role:
        chosen = chosen.where(tables.Version.role.in_(role))
    return page_of(http_request, http_response, session, caller, chosen, paging, shapes)


@router.get(
    "/models/{model_id}/versions/{version}",
    operation_id="get_version",
    response_model=VersionWithFindings,
    responses=problems(NotFound),
)
def get_version(
    caller: Annotated[Caller, requires("models:read")],
    model_id: ModelId,
    version: VersionRef,
    session: ReadSession,
) -> VersionWithFindings:
    """Read one version with its findings."""
    row = models.version(session, caller.tenant_id, model_id, version)
    rung = _published_rung(session, row)
    baseline = models.baseline(session, caller.tenant_id, row.id)
    successor = _successor(session, row)
    return VersionWithFindings(
        **_fields(row, successor),
        baseline=None if baseline is None else [Finding.model_validate(f) for f in baseline],
        findings=rung.get("findings", []),
        gates=rung.get("gates", []),
        earlier=rung.get("earlier", {}),
        processes=rung.get("processes"),
        audits=reports(session, _latest_audits(session, row)),
    )


BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
CHECKPOINT: dict[str, Any] = {
    "responses": {
        **problems(NotFound, Conflict, Gone, RangeNotSatisfiable, Unavailable),
        200: {
            "description": "The checkpoint as safetensors.",
            "content": BYTES,
        },
        206: {"description": "The range asked for.", "content": BYTES},
        **NOT_MODIFIED,
    },
    "response_class": Response,
}


@router.get(
    "/models/{model_id}/versions/{version}/checkpoint",
    operation_id="download_checkpoint",
    **CHECKPOINT,
)
@router.head(
    "/models/{model_id}/versions/{version}/checkpoint",
    operation_id="head_checkpoint",
    **CHECKPOINT,
)
def download_checkpoint(
    caller: Annotated[Caller, requires("models:download")],
    model_id: ModelId,
    version: VersionRef,
    session: ReadSession,
    http_request: Request,
) -> Response:
    """Download the weights of a version; `ETag` is its SHA-256, and one `Range` may be asked for.

    A withdrawn version answers 410 with a `Link` to its successor, one that is not or not yet
    accepted 409.
    """
    row = models.version(session, caller.tenant_id, model_id, version)
    if row.status != "ready" or row.blob is None:
        raise _not_for_download(session, row)
    label = f"v{row.number}" if row.role == "chain" else row.id
    name = f"{row.model_id}-{label}.safetensors"
    return checkpoint.serve(http_request, row.blob, digest=row.digest, name=name)


def shapes(rows: Sequence[tables.Version]) -> list[Version]:
    """Return the shapes of version rows."""
    return [Version(**_fields(row, None)) for row in rows]


def _fields(row: tables.Version, successor: tables.Version | None) -> dict[str, Any]:
    path = paths.version(row)
    links = {"self": path, "model": f"/models/{row.model_id}"}
    if row.role == "chain":
        links["audits"] = f"{path}/audits"
    else:
        links["oracle_of"] = f"/models/{row.model_id}/versions/{row.oracle_of_id}"
    if row.status == "ready":
        links["checkpoint"] = paths.checkpoint(row)
    if row.job_id is not None:
        links["job"] = f"/jobs/{row.job_id}"
    if successor is not None:
        links["successor"] = paths.version(successor)
    return {
        "id": row.id,
        "model": row.model_id,
        "role": row.role,
        "number": row.number,
        "status": row.status,
        "parent": row.parent_id,
        "oracle_of": row.oracle_of_id,
        "job": row.job_id,
        "outcome": row.outcome,
        "digest": f"sha256:{row.digest.removeprefix('sha256:')}",
        "size_bytes": row.size_bytes,
        "num_parameters": row.num_parameters,
        "importance": row.importance,
        "rejection": row.rejection,
        "upload": row.upload,
        "created_at": row.created_at,
        "prepared_at": row.prepared_at,
        "withdrawn_at": row.withdrawn_at,
        "links": links,
    }


def _successor(session: Session, row: tables.Version) -> tables.Version | None:
    chosen = select(tables.Version).where(
        tables.Version.tenant_id == row.tenant_id, tables.Version.parent_id == row.id
    )
    return session.scalars(chosen).one_or_none()


def _latest_audits(session: Session, row: tables.Version) -> Sequence[tables.AuditReport]:
    chosen = audits.of_version(row).order_by(tables.AuditReport.id.desc()).limit(SHOWN_AUDITS)
    return session.scalars(chosen).all()


def _published_rung(session: Session, row: tables.Version) -> dict[str, Any]:
    """Return the body of the rung that made this version; empty for an upload."""
    if row.job_id is None:
        return {}
    chosen = select(tables.Rung.body).where(
        tables.Rung.tenant_id == row.tenant_id, tables.Rung.job_id == row.job_id
    )
    bodies = session.scalars(chosen).all()
    return next((body for body in bodies if body["status"] == "published"), {})


def _not_for_download(session: Session, row: tables.Version) -> ServiceError:
    if row.status == "withdrawn":
        successor = _successor(session, row)
        if successor is None:
            return Gone("object_erased", "The bytes of this version were erased.")
        link = f'<{paths.version(successor)}>; rel="successor-version"'
        detail = "This version was replaced by another."
        return Gone("version_withdrawn", detail, headers={"Link": link})
    if row.status == "validating":
        detail = "This version is still being checked."
        return Conflict("version_not_ready", detail, headers={"Retry-After": "2"})
    if row.status == "rejected":
        cause = row.rejection or {}
        detail = f"This version was rejected: {cause.get('code', 'unknown')}."
        return Conflict("version_not_accepted", detail)
    return Gone("object_erased", "The bytes of this version were erased.")
