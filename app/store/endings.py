"""How a job ends, and what its end means for whatever waited for it.

Rows are always locked in the order dataset, model, job, request, so that no two transactions wait
for each other.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from . import clock
from .erasing import release_samples
from .status import BLAMELESS, EVIDENCE_KINDS, JOB_TERMINAL
from .tables import Dataset, Document, Job, Model, Request, Version
from .trash import throw

Row = TypeVar("Row", Dataset, Version)


class LeaseLost(Exception):
    """The job is not this attempt's any more; nothing was written."""


def problem(code: str, detail: str) -> Document:
    """Return the document kept in ``error``, ``problem`` and ``rejection``."""
    return {"code": code, "detail": detail}


def lock(session: Session, tenant_id: str, job_id: str, *, is_patient: bool = True) -> Job | None:
    """Return the job, locked together with its dataset and its model.

    None if there is none; without patience also if somebody else holds one of the three.
    """
    job = session.get(Job, (tenant_id, job_id), populate_existing=True)
    if job is None:
        return None
    how: Any = True if is_patient else {"skip_locked": True}
    keys = ((Dataset, job.dataset_id), (Model, job.model_id), (Job, job_id))
    for table, row_id in keys:
        if row_id is None:
            continue
        key = (tenant_id, row_id)
        if session.get(table, key, with_for_update=how, populate_existing=True) is None:
            return None
    return job


def _lock(session: Session, table: type[Row], tenant_id: str, row_id: str | None) -> Row:
    key = (tenant_id, row_id)
    return session.get_one(table, key, with_for_update=True, populate_existing=True)


def end(
    session: Session,
    job: Job,
    status: str,
    *,
    epoch: int | None = None,
    error: Document | None = None,
    result: Document | None = None,
) -> None:
    """Give a job its terminal state; one that has one already is never changed.

    Args:
        session: of the caller's transaction.
        job: which one; refreshed.
        status: a terminal state.
        epoch: of the attempt that ends it; None if none is at work or none is asked.
        error: why it failed.
        result: what came out.

    Raises:
        LeaseLost: if it is not that attempt's any more, or has ended.
    """
    assert status in JOB_TERMINAL
    values: Document = {
        "status": status,
        "error": error,
        "result": result,
        "finished_at": datetime.now(UTC),
    }
    if status == "succeeded":
        values["progress"] = 1.0
    checkpoint = job.checkpoint_blob
    _move(session, job, epoch, values | {"checkpoint_blob": None, "checkpoint_digest": None})
    throw(session, checkpoint)
    if status != "succeeded":
        cause = error or problem("cancelled", "The job was cancelled.")
        _bear_consequences(session, job, status, cause)
    ring_again(session, job)


def requeue(
    session: Session,
    job: Job,
    *,
    epoch: int,
    delay: float = 0.0,
    held_for: str | None = None,
    **counters: int,
) -> None:
    """Put a running job back into the queue; its requests wait again, and its checkpoint stays.

    Raises:
        LeaseLost: if it is not that attempt's any more.
    """
    values: Document = {
        "status": "queued",
        "run_after": clock.now() + delay,
        "held_for": held_for,
        "dispatched_at": None,
        "progress": 0.0,
        "metrics": {},
        **counters,
    }
    _move(session, job, epoch, values)
    move_requests(session, job, ("processing",), status="queued")
    ring_again(session, job)


def move_requests(
    session: Session,
    job: Job,
    old: tuple[str, ...],
    condition: ColumnElement[bool] | None = None,
    **values: Any,
) -> None:
    """Change the requests of a job that are in one of the states ``old``, and meet a condition."""
    moved = (
        update(Request)
        .where(
            Request.tenant_id == job.tenant_id,
            Request.job_id == job.id,
            Request.status.in_(old),
        )
        .values(**values)
        .execution_options(synchronize_session="fetch")
    )
    session.execute(moved if condition is None else moved.where(condition))


def stop_jobs(session: Session, *conditions: ColumnElement[bool]) -> None:
    """Cancel the queued jobs that meet the conditions, and ask the running ones to stop."""
    chosen = select(Job).where(Job.status.in_(("queued", "running")), *conditions)
    for job in session.scalars(
        chosen.order_by(Job.id).with_for_update().execution_options(populate_existing=True)
    ).all():
        stop(session, job)


def stop(session: Session, job: Job) -> None:
    """Cancel a queued job at once; ask the worker of a running one to stop."""
    if job.status == "queued":
        end(session, job, "cancelled")
    elif job.status == "running" and job.cancel_requested_at is None:
        job.cancel_requested_at = datetime.now(UTC)
        job.revision += 1
        session.flush()


def ring_again(session: Session, job: Job) -> None:
    """Have the queued jobs of the same model rung at once: one that was rung in vain may go now."""
    if job.model_id is None:
        return
    session.execute(
        update(Job)
        .where(
            Job.tenant_id == job.tenant_id,
            Job.model_id == job.model_id,
            Job.status == "queued",
            Job.dispatched_at.is_not(None),
        )
        .values(dispatched_at=None)
        .execution_options(synchronize_session=False)
    )


def reject_models_of(session: Session, dataset: Dataset) -> None:
    """Reject the versions that were waiting for a dataset which turned out unusable."""
    models = select(Model).where(
        Model.tenant_id == dataset.tenant_id,
        Model.status == "active",
        or_(Model.dataset_id == dataset.id, Model.holdout_dataset_id == dataset.id),
    )
    cause = dataset.rejection or {}
    detail = f"A dataset of the model was rejected: {cause.get('code')}: {cause.get('detail')}"
    for model in session.scalars(models.order_by(Model.id).with_for_update()).all():
        waiting = select(Job).where(
            Job.tenant_id == model.tenant_id,
            Job.model_id == model.id,
            Job.kind.in_(("convert", "prepare")),
            Job.status == "queued",
        )
        for job in session.scalars(waiting.with_for_update()).all():
            end(session, job, "failed", error=problem("upload_rejected", detail))


def _move(session: Session, job: Job, epoch: int | None, values: dict[str, Any]) -> None:
    moved = (
        update(Job)
        .where(Job.tenant_id == job.tenant_id, Job.id == job.id)
        .values(
            lease_owner=None,
            lease_until=None,
            eta_seconds=None,
            phase=None,
            rung=None,
            revision=Job.revision + 1,
            **values,
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    if epoch is None:
        moved = moved.where(Job.status.not_in(JOB_TERMINAL))
    else:
        moved = moved.where(Job.status == "running", Job.epoch == epoch)
    if session.execute(moved).one_or_none() is None:
        raise LeaseLost(f"{job.id} is not this attempt's any more")
    session.refresh(job)


def _bear_consequences(session: Session, job: Job, status: str, cause: Document) -> None:
    if job.kind == "ingest":
        _reject_dataset(session, job, cause)
    elif job.kind in ("convert", "prepare"):
        _reject_version(session, job, cause)
    elif job.kind in EVIDENCE_KINDS:
        return
    elif status == "cancelled":
        now = datetime.now(UTC)
        move_requests(session, job, ("queued", "processing"), status="cancelled", completed_at=now)
        release_samples(session, job.tenant_id, job.dataset_id)
    else:
        move_requests(
            session,
            job,
            ("queued", "processing"),
            status="needs_attention",
            outcome="not_erased",
            problem=cause,
        )


def _reject_dataset(session: Session, job: Job, cause: Document) -> None:
    """Reject an upload that could not be read; one that is not to blame waits for a retry."""
    dataset = _lock(session, Dataset, job.tenant_id, job.dataset_id)
    if dataset.status != "validating":
        return
    if cause["code"] in BLAMELESS:
        dataset.rejection = cause
        session.flush()
        return
    throw(session, dataset.blob)
    dataset.status, dataset.rejection, dataset.blob = "rejected", cause, None
    session.flush()
    reject_models_of(session, dataset)


def _reject_version(session: Session, job: Job, cause: Document) -> None:
    """Reject an upload that could not be prepared; one that is not to blame waits for a retry.

    A published version stays as it is.
    """
    version = _lock(session, Version, job.tenant_id, job.version_id)
    if version.status != "validating":
        return
    if cause["code"] in BLAMELESS:
        version.rejection = cause
        session.flush()
        return
    throw(session, version.blob, version.importance_blob)
    version.status, version.rejection = "rejected", cause
    if version.upload is not None and version.upload["scan"] == "pending":
        level = (job.sandbox or {}).get("level")
        version.upload = version.upload | {"scan": "refused", "sandbox": level}
    version.blob = version.importance_blob = version.importance = None
    session.flush()
    waiting = select(Job).where(
        Job.tenant_id == job.tenant_id,
        Job.model_id == job.model_id,
        Job.kind != "prepare",
        Job.status == "queued",
    )
    detail = f"The model was rejected: {cause['code']}: {cause['detail']}"
    for each in session.scalars(waiting.with_for_update()).all():
        end(session, each, "failed", error=problem("upload_rejected", detail))
