"""The end of an unlearn job: a new version, or an honest refusal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from .. import references
from ..endings import LeaseLost, end, move_requests, problem
from ..erasing import erase_samples
from ..ids import new
from ..models import queue_prepare
from ..requests import no_influence, num_waiting
from ..tables import Document, Job, Model, Request, Rung, Version
from ..trash import throw
from .claiming import hold
from .claims import Claim


def publish(
    session: Session,
    claim: Claim,
    *,
    outcome: str,
    rungs: Sequence[Document],
    blob: str,
    digest: str,
    size_bytes: int,
    published: int | None = None,
    reason: str = "",
    cost: Document | None = None,
    importance_blob: str | None = None,
    importance: Document | None = None,
) -> Version | None:
    """Store the new version, withdraw its parent and complete the requests, all or nothing.

    Args:
        session: of the caller's transaction.
        claim: of the attempt.
        outcome: ``erased_exact`` or ``erased_approximate``.
        rungs: every rung that was tried (``core.findings.Rung`` as JSON).
        blob: key of the new weights, already adopted.
        digest: sha256 of the weights, in hex.
        size_bytes: of the weights.
        published: index of the rung that made them.
        reason: why that rung was published.
        cost: what the job took, for readers.
        importance_blob: key of the importance that is left, where it can't be measured again.
        importance: what ``core.importance`` says of it.

    Returns:
        The new version; None if everybody took their request back, or the model was deleted, in
        the meantime: then the job is cancelled and the weights are thrown away.

    Raises:
        LeaseLost: if the job is not this attempt's any more; nothing is written then.
    """
    job, parent = hold(session, claim), claim.version
    assert parent is not None, "the base is fixed at claim"
    assert claim.model is not None, "an unlearn job has a model"
    model = session.get_one(Model, (job.tenant_id, claim.model.id))
    if model.status != "active" or num_waiting(session, job) == 0:
        throw(session, blob, importance_blob)
        end(session, job, "cancelled", epoch=claim.epoch)
        return None
    version = _child(session, job, parent, outcome, blob, digest, size_bytes)
    version.importance_blob, version.importance = importance_blob, importance
    session.flush()
    result = {
        "outcome": outcome,
        "version": version.id,
        "version_number": version.number,
        "published": published,
        "reason": reason,
        "cost": cost or {},
    }
    end(session, job, "succeeded", epoch=claim.epoch, result=result)
    _keep_rungs(session, job, rungs)
    _replace(session, parent, version)
    references.drop(session, model, parent)
    _complete(session, job, outcome, version)
    _let_samples_go(session, job)
    _queue_prepare(session, parent, version)
    return version


def exhaust(
    session: Session,
    claim: Claim,
    *,
    code: str,
    detail: str,
    rungs: Sequence[Document],
    cost: Document | None = None,
) -> None:
    """End a job none of whose rungs may be published; its requests need a person.

    Args:
        session: of the caller's transaction.
        claim: of the attempt.
        code: ``ladder_exhausted`` or ``evidence_insufficient``.
        detail: why, for people.
        rungs: every rung that was tried.
        cost: what the job took, for readers.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job = hold(session, claim)
    result = {
        "outcome": "not_erased",
        "version": None,
        "version_number": None,
        "published": None,
        "reason": detail,
        "cost": cost or {},
    }
    error = problem(code, detail)
    end(session, job, "failed", epoch=claim.epoch, error=error, result=result)
    _keep_rungs(session, job, rungs)


def finish_without_influence(session: Session, claim: Claim) -> None:
    """End a job whose records were all forgotten by jobs before it.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job = hold(session, claim)
    assert claim.version is not None, "the base is fixed at claim"
    end(session, job, "succeeded", epoch=claim.epoch, result=no_influence(claim.version))
    _settle(session, job, outcome="no_influence")
    _let_samples_go(session, job)


def _child(
    session: Session,
    job: Job,
    parent: Version,
    outcome: str,
    blob: str,
    digest: str,
    size_bytes: int,
) -> Version:
    assert parent.number is not None, "the base of an unlearn job is a link of the chain"
    version = Version(
        tenant_id=job.tenant_id,
        id=new("ver"),
        model_id=parent.model_id,
        number=parent.number + 1,
        parent_id=parent.id,
        job_id=job.id,
        status="ready",
        outcome=outcome,
        digest=digest,
        size_bytes=size_bytes,
        num_parameters=parent.num_parameters,
        blob=blob,
    )
    session.add(version)
    session.flush()
    return version


def _keep_rungs(session: Session, job: Job, rungs: Sequence[Document]) -> None:
    for place, body in enumerate(rungs):
        index = body.get("index", place)
        session.add(Rung(tenant_id=job.tenant_id, job_id=job.id, index=index, body=body))
    session.flush()


def _replace(session: Session, parent: Version, child: Version) -> None:
    """Withdraw the parent, drop what was derived from its records, and serve the child."""
    importance_blob = session.scalar(
        select(Version.importance_blob).where(
            Version.tenant_id == parent.tenant_id, Version.id == parent.id
        )
    )
    throw(session, importance_blob)
    _one(
        session,
        update(Version)
        .where(
            Version.tenant_id == parent.tenant_id,
            Version.id == parent.id,
            Version.status == "ready",
        )
        .values(
            status="withdrawn",
            withdrawn_at=datetime.now(UTC),
            importance_blob=None,
            importance=None,
        )
        .returning(Version.id),
    )
    _one(
        session,
        update(Model)
        .where(
            Model.tenant_id == parent.tenant_id,
            Model.id == parent.model_id,
            Model.current_version_id == parent.id,
            Model.status == "active",
        )
        .values(current_version_id=child.id)
        .returning(Model.id),
    )


def _complete(session: Session, job: Job, outcome: str, version: Version) -> None:
    """Complete the requests; those whose records earlier jobs had forgotten owe nothing to it."""
    chosen = select(Request).where(
        Request.tenant_id == job.tenant_id,
        Request.job_id == job.id,
        Request.status == "processing",
    )
    empty = [each.id for each in session.scalars(chosen) if not len(each.rows)]
    if empty:
        _settle(session, job, Request.id.in_(empty), outcome="no_influence")
    _settle(session, job, Request.id.not_in(empty), outcome=outcome, applied_version_id=version.id)


def _settle(
    session: Session, job: Job, condition: ColumnElement[bool] | None = None, **values: Any
) -> None:
    """Complete the job's requests, or those that meet the condition."""
    now = datetime.now(UTC)
    move_requests(
        session, job, ("processing",), condition, status="completed", completed_at=now, **values
    )


def _let_samples_go(session: Session, job: Job) -> None:
    """Erase the records that came along; whoever else asked for them owes nothing any more."""
    if job.dataset_id is None:
        return
    # Under the lock of the dataset, and with these completed, only what needs attention is left.
    others = select(Request).where(
        Request.tenant_id == job.tenant_id,
        Request.samples_dataset_id == job.dataset_id,
        Request.status == "needs_attention",
    )
    for request in session.scalars(others.with_for_update()).all():
        applied = request.counts["num_already_applied"] + len(request.rows)
        request.counts = request.counts | {"num_records": 0, "num_already_applied": applied}
        request.rows = request.rows[:0]
        request.status, request.outcome, request.problem = "completed", "no_influence", None
        request.completed_at = datetime.now(UTC)
    session.flush()
    erase_samples(session, job.tenant_id, job.dataset_id)


def _queue_prepare(session: Session, parent: Version, child: Version) -> None:
    """Measure the child; measuring the withdrawn parent has no use any more."""
    stale = select(Job).where(
        Job.tenant_id == parent.tenant_id,
        Job.version_id == parent.id,
        Job.kind == "prepare",
        Job.status == "queued",
    )
    for job in session.scalars(stale.with_for_update()).all():
        end(session, job, "cancelled")
    session.add(queue_prepare(child))
    session.flush()


def _one(session: Session, statement: Any) -> None:
    changed = session.execute(statement.execution_options(synchronize_session=False)).all()
    if len(changed) != 1:
        raise LeaseLost("what the attempt started from has changed")
