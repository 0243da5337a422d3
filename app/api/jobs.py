"""Jobs: the compute behind requests and uploads, and the handle for polling."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse

from core.findings import Finding, Gate, Processes, Rung

from ..store import audits, jobs, tables
from ..store.errors import BadRequest, Conflict, NotFound, Unacceptable
from ..store.keys import Caller
from ..store.session import reading
from ..store.status import EVIDENCE_KINDS, JOB_TERMINAL, JobKind, JobStatus
from . import paths
from .deps import ReadSession, requires
from .idempotency import Answer, OptionalOnce
from .ids import JobId, ModelFilter
from .listing import Pages, page_of
from .problems import problems
from .shapes import Links, Nothing, Page, Shape
from .strict_json import Body, optional_body
from .waiting import NOT_MODIFIED, IfNoneMatch, Wait, conditional, retry_after, settled

router = APIRouter(tags=["jobs"])


class JobResult(Shape):
    """What a finished job came to; what its kind does not have is null."""

    outcome: str | None = Field(
        description="`erased_exact`, `erased_approximate`, `no_influence` or `not_erased`."
    )
    version: str | None = Field(
        description="Id of the version in force after an unlearn job, of the one that an audit "
        "looked at, or of the oracle that was trained."
    )
    version_number: int | None
    published: int | None = Field(description="Index of the rung that was published.")
    reason: str | None
    gates: list[Gate] | None = Field(
        description="Of the rung that was published. Left out (null) in lists."
    )
    rungs_tried: list[Rung] | None = Field(description="Left out (null) in lists.")
    cost: dict[str, Any] | None
    findings: list[Finding] | None = Field(description="Of an audit job. Left out (null) in lists.")
    models: int | None = Field(description="How many reference models were trained.")
    processes: Processes | None = Field(
        description="Of an oracle or reference models, where the worker is set to several "
        "processes; those of an unlearn job are told by its rungs."
    )


class JobRung(Shape):
    """The rung of the ladder at work."""

    index: int
    of: int
    method: str


class JobSandbox(Shape):
    """How well the runner was walled in."""

    level: str = Field(description="`L0`, `L1` or `L2`, as in `GET /readyz`.")
    walls: list[str] = Field(description="Those that were tried and held.")


class Job(Shape):
    """One run of the ladder, or of the checks after an upload."""

    object: Literal["job"] = "job"
    id: str
    kind: str = Field(
        description="`ingest` (dataset), `convert` and `prepare` (version), `unlearn`, `audit`, "
        "`oracle` or `bank`."
    )
    model: str | None
    dataset: str | None
    version: str | None = Field(
        description="The base of an unlearn job, fixed when it starts; else what it works on."
    )
    requests: list[str]
    status: str = Field(description="`queued`, `running`, `succeeded`, `failed`, `cancelled`.")
    phase: str | None
    progress: float
    eta_seconds: float | None
    waiting_on: str | None = Field(
        description="While queued: `model` (it is being checked), `model_lock` (another job of it "
        "runs), `backoff` (after a runner died), `storage_full` or `worker`."
    )
    rung: JobRung | None
    attempt: int
    retry_of: str | None = Field(description="Id of the failed job that this one tries again.")
    metrics: dict[str, Any]
    policy: str | None
    unlearner: dict[str, Any] | Literal["auto"] | None
    cancel_requested: bool
    result: JobResult | None
    sandbox: JobSandbox | None = Field(description="Around the runner that did it; once it ended.")
    error: dict[str, Any] | None = Field(description="`code` and `detail` of a failure.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: Links


@router.get(
    "/jobs", operation_id="list_jobs", response_model=Page[Job], responses=problems(BadRequest)
)
def list_jobs(
    caller: Annotated[Caller, requires("jobs:read")],
    paging: Pages,
    session: ReadSession,
    http_request: Request,
    http_response: Response,
    status: Annotated[list[JobStatus] | None, Query(description="Repeatable.")] = None,
    kind: Annotated[list[JobKind] | None, Query(description="Repeatable.")] = None,
    model: Annotated[ModelFilter, Query(description="Only of this model.")] = None,
) -> Page[Job]:
    """List jobs, newest first."""
    chosen = select(tables.Job)
    if status:
        chosen = chosen.where(tables.Job.status.in_(status))
    if kind:
        chosen = chosen.where(tables.Job.kind.in_(kind))
    if model is not None:
        chosen = chosen.where(tables.Job.model_id == model)
    return page_of(
        http_request, http_response, session, caller, chosen, paging, partial(shapes, session)
    )


@router.get(
    "/jobs/{job_id}",
    operation_id="get_job",
    response_model=Job,
    responses={**problems(NotFound), **NOT_MODIFIED},
)
async def get_job(
    caller: Annotated[Caller, requires("jobs:read")],
    job_id: JobId,
    http_request: Request,
    wait: Wait,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Read one job: the same shape while it runs and after.

    Cheap to poll: `If-None-Match` answers 304, `Retry-After` says when to ask again, and
    `Prefer: wait=30` holds the answer until the job is over or the time is up.
    `links.checkpoint` is there once a new version is published, and only then.
    """

    def read() -> Job:
        with reading() as session:
            row = jobs.get(session, caller.tenant_id, job_id)
            return shape(session, row, jobs.rungs(session, caller.tenant_id, job_id))

    found = await settled(http_request, wait, read, _is_over)
    again = None if _is_over(found) else retry_after(found.eta_seconds)
    return conditional(found, if_none_match, wait=wait, retry_after=again)


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    operation_id="cancel_job",
    response_model=Job,
    responses=problems(NotFound, Conflict),
)
def cancel_job(
    caller: Annotated[Caller, requires("jobs:cancel")],
    job_id: JobId,
    once: OptionalOnce,
    body: Annotated[Body[Nothing], Depends(optional_body(Nothing))],
) -> Response:
    """Cancel a job that is not over; refused with `job_shared` if it serves several requests."""

    def act(session: Session) -> Answer:
        jobs.cancel(session, caller.tenant_id, job_id)
        row = jobs.get(session, caller.tenant_id, job_id)
        return Answer(202, shape(session, row, jobs.rungs(session, caller.tenant_id, job_id)))

    return once.answer(caller, body.fingerprint, act)


@router.post(
    "/jobs/{job_id}/retry",
    status_code=202,
    operation_id="retry_job",
    response_model=Job,
    responses=problems(NotFound, Conflict, Unacceptable),
)
def retry_job(
    caller: Annotated[Caller, requires("jobs:retry")],
    job_id: JobId,
    once: OptionalOnce,
    body: Annotated[Body[Nothing], Depends(optional_body(Nothing))],
) -> Response:
    """Try a failed job again: a new job, which `retry_of` links to the failed one.

    It takes over the requests that need attention. An upload that was found unusable is not tried
    again: send it anew. One whose reading or checking failed for want of memory, time, a worker or
    an accelerator is kept, and read or checked again.
    """

    def act(session: Session) -> Answer:
        row = jobs.retry(session, caller.tenant_id, job_id)
        return Answer(202, shape(session, row, []), {"Location": f"/jobs/{row.id}"})

    return once.answer(caller, body.fingerprint, act)


@router.get(
    "/jobs/{job_id}/checkpoint",
    status_code=303,
    operation_id="get_job_checkpoint",
    response_class=RedirectResponse,
    responses=problems(NotFound, Conflict),
)
def get_job_checkpoint(
    caller: Annotated[Caller, requires("models:download")],
    job_id: JobId,
    session: ReadSession,
) -> RedirectResponse:
    """Go to the checkpoint that the job published."""
    row = jobs.get(session, caller.tenant_id, job_id)
    version = _published(session, [row]).get(row.id)
    if version is None:
        raise Conflict("version_not_accepted", "This job has not published a version.")
    return RedirectResponse(paths.checkpoint(version), status_code=303)


def shape(session: Session, row: tables.Job, rungs: Sequence[Any]) -> Job:
    """Return the shape of a job row with its rungs."""
    found = shapes(session, [row])[0]
    if found.result is None:
        return found
    if row.kind == "audit":
        report = audits.of_job(session, row.tenant_id, row.id)
        findings = [] if report is None else report.findings
        shown = [Finding.model_validate(finding) for finding in findings]
        result = found.result.model_copy(update={"findings": shown})
        return found.model_copy(update={"result": result})
    if row.kind != "unlearn":
        return found
    tried = [Rung.model_validate(rung) for rung in rungs]
    gates = [gate for rung in tried if rung.status == "published" for gate in rung.gates]
    result = found.result.model_copy(update={"rungs_tried": tried, "gates": gates})
    return found.model_copy(update={"result": result})


def shapes(session: Session, rows: Sequence[tables.Job]) -> list[Job]:
    """Return the shapes of job rows, without their rungs."""
    served = _served(session, rows)
    published = _published(session, rows)
    waiting = jobs.waiting_on(session, rows)
    return [
        _shape(row, served.get(row.id, []), published.get(row.id), waiting.get(row.id))
        for row in rows
    ]


def _is_over(found: Job) -> bool:
    return found.status in JOB_TERMINAL


def _shape(
    row: tables.Job, served: list[str], version: tables.Version | None, waiting_on: str | None
) -> Job:
    return Job(
        id=row.id,
        kind=row.kind,
        model=row.model_id,
        dataset=row.dataset_id,
        version=row.version_id,
        requests=served,
        status=row.status,
        phase=row.phase,
        progress=row.progress,
        eta_seconds=row.eta_seconds,
        waiting_on=waiting_on,
        rung=None if row.rung is None else JobRung.model_validate(row.rung),
        attempt=row.attempts,
        retry_of=row.retry_of_id,
        metrics=row.metrics,
        policy=row.policy,
        unlearner=row.unlearner or ("auto" if row.kind == "unlearn" else None),
        cancel_requested=row.cancel_requested_at is not None,
        result=_result(row),
        sandbox=row.sandbox,
        error=row.error,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        links=_links(row, served, version),
    )


def _links(row: tables.Job, served: list[str], version: tables.Version | None) -> dict[str, str]:
    links = {"self": f"/jobs/{row.id}"}
    if row.status not in JOB_TERMINAL:
        links["cancel"] = f"/jobs/{row.id}/cancel"
    if row.status == "failed" and jobs.may_retry(row):
        links["retry"] = f"/jobs/{row.id}/retry"
    if served:
        links["request"] = f"/unlearn-requests/{served[0]}"
    if row.model_id is not None:
        links["model"] = f"/models/{row.model_id}"
    if row.dataset_id is not None:
        links["dataset"] = f"/datasets/{row.dataset_id}"
    if version is not None:
        links["checkpoint"] = paths.checkpoint(version)
    return links


def _result(row: tables.Job) -> JobResult | None:
    if row.result is None or row.kind not in ("unlearn", *EVIDENCE_KINDS):
        return None
    return JobResult.model_validate(dict.fromkeys(JobResult.model_fields) | row.result)


def _served(session: Session, rows: Sequence[tables.Job]) -> dict[str, list[str]]:
    """Return the ids of the requests that each job serves, oldest first."""
    found: dict[str, list[str]] = {}
    if not rows:
        return found
    chosen = (
        select(tables.Request.job_id, tables.Request.id)
        .where(
            tables.Request.tenant_id == rows[0].tenant_id,
            tables.Request.job_id.in_([row.id for row in rows]),
        )
        .order_by(tables.Request.id)
    )
    for job_id, request_id in session.execute(chosen):
        found.setdefault(job_id, []).append(request_id)
    return found


def _published(session: Session, rows: Sequence[tables.Job]) -> dict[str, tables.Version]:
    """Return the version that each job made."""
    if not rows:
        return {}
    chosen = select(tables.Version).where(
        tables.Version.tenant_id == rows[0].tenant_id,
        tables.Version.job_id.in_([row.id for row in rows]),
    )
    return {str(version.job_id): version for version in session.scalars(chosen)}
