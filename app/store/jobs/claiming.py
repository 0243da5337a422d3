"""The right to do a job: taken by one attempt, for a time, and renewed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

import numpy as np
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.settings import Need
from core.situation import Purpose

from .. import audits, budget, clock, models, references, situations
from .. import session as sessions
from ..endings import LeaseLost, end, lock, move_requests, problem
from ..resolution import Rows, num_overlapping
from ..tables import Dataset, Document, Job, Model, Request, Version
from .claims import Claim, Renewal
from .queueing import is_due, next_ids


def claim(session: Session, job_id: str, owner: str) -> Claim | None:
    """Take a job that is due; None if it is not, or if another worker was faster.

    Args:
        session: of the caller's transaction.
        job_id: from a message, so anything at all.
        owner: name of the worker, for people.
    """
    due = session.execute(select(Job.tenant_id).where(Job.id == job_id, is_due())).one_or_none()
    # A job that is taken may be refused at once, which touches its model: so that comes first.
    if due is None or lock(session, due.tenant_id, job_id) is None:
        return None
    try:
        with session.begin_nested():
            job = _take(session, job_id, owner)
    except IntegrityError:  # one_running_job_per_model: another job of the model was faster
        return None
    if job is None:
        return None
    if job.kind == "ingest":
        dataset = session.get(Dataset, (job.tenant_id, job.dataset_id))
        return Claim(job, job.epoch, dataset=dataset)
    claimed = _with_model(session, job)
    if job.kind == "audit":
        claimed = _with_subject(session, claimed)
    refused = {"prepare": _refuse_overlap, "audit": _refuse_traceless, "oracle": _refuse_replaced}
    if job.kind in refused and refused[job.kind](session, claimed):
        return None
    return claimed


def claim_next(session: Session, owner: str, needs: Collection[Need]) -> Claim | None:
    """Take the job whose turn it is, of those that this worker can do; None if there is none."""
    for job_id in next_ids(session, needs):
        if (held := claim(session, job_id, owner)) is not None:
            return held
    return None


def renew(
    session: Session,
    claim: Claim,
    *,
    phase: str | None = None,
    progress: float | None = None,
    eta_seconds: float | None = None,
    rung: Document | None = None,
    metrics: Document | None = None,
) -> Renewal:
    """Hold the job for another lease and, where ``progress`` is given, store the news.

    The revision grows only if a reader would see a difference.
    """
    job = claim.job
    mine = (
        Job.tenant_id == job.tenant_id,
        Job.id == job.id,
        Job.epoch == claim.epoch,
        Job.status == "running",
    )
    values: Document = {"lease_until": clock.now() + sessions.settings().lease_seconds}
    if progress is not None:
        news = {
            "phase": phase,
            "progress": progress,
            "eta_seconds": eta_seconds,
            "rung": rung,
            "metrics": metrics or {},
        }
        seen = session.execute(select(*(getattr(Job, name) for name in news)).where(*mine)).first()
        if seen is not None and seen._mapping != news:
            values |= news | {"revision": Job.revision + 1}
    renewed = (
        update(Job)
        .where(*mine)
        .values(**values)
        .returning(Job.cancel_requested_at)
        .execution_options(synchronize_session=False)
    )
    found = session.execute(renewed).one_or_none()
    return Renewal(alive=found is not None, cancel=found is not None and found[0] is not None)


def hold(session: Session, claim: Claim) -> Job:
    """Return the job of a claim, locked; for verbs that end the attempt.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job = lock(session, claim.job.tenant_id, claim.job.id)
    if job is None or job.epoch != claim.epoch or job.status != "running":
        raise LeaseLost(f"{claim.job.id} is not this attempt's any more")
    return job


def _take(session: Session, job_id: str, owner: str) -> Job | None:
    taken = (
        update(Job)
        .where(Job.id == job_id, is_due())
        .values(
            status="running",
            phase="resolving",
            epoch=Job.epoch + 1,
            attempts=Job.attempts + 1,
            revision=Job.revision + 1,
            lease_owner=owner,
            lease_until=clock.now() + sessions.settings().lease_seconds,
            held_for=None,
            started_at=func.coalesce(Job.started_at, datetime.now(UTC)),
        )
        .returning(Job)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(taken).one_or_none()


def _with_model(session: Session, job: Job) -> Claim:
    tenant_id = job.tenant_id
    model = models.get(session, tenant_id, job.model_id or "")
    if job.kind == "unlearn":
        job.version_id = model.current_version_id
        session.flush()
    version = session.get(Version, (tenant_id, job.version_id)) if job.version_id else None
    excluded = models.excluded_rows(session, tenant_id, model.id)
    is_unlearn = job.kind == "unlearn"
    asked = _start_requests(session, job, excluded) if is_unlearn else []
    return Claim(
        job,
        job.epoch,
        dataset=models.dataset_of(session, model),
        model=model,
        version=version,
        holdout=_holdout(session, model),
        samples=_samples(session, job),
        excluded=excluded,
        requests={request.id: request.rows for request in asked},
        forget_classes=tuple(
            sorted({each.selector_class for each in asked if each.selector_class is not None})
        ),
        purpose=cast("Purpose", asked[0].purpose) if asked else "erasure",
        earlier=models.earlier_requests(session, tenant_id, model.id) if is_unlearn else {},
        spent=budget.spent(session, model) if is_unlearn else budget.Spent(),
        seconds_per_pass=situations.seconds_per_pass(session, model) if is_unlearn else None,
    )


def _with_subject(session: Session, claim: Claim) -> Claim:
    """Add what an audit looks for, as it is now, and what it can compare with."""
    assert claim.version is not None
    request = None
    if claim.job.options["request"] is not None:
        request = session.get_one(Request, (claim.job.tenant_id, claim.job.options["request"]))
    subject = audits.subject(session, claim.version, request)
    known = references.oracles(session, claim.version) if subject.is_forgotten else []
    return replace(
        claim,
        subject=subject,
        excluded=subject.excluded,
        forget_classes=subject.forget_classes,
        oracles=tuple(known),
    )


def _holdout(session: Session, model: Model) -> Dataset | None:
    if model.holdout_dataset_id is None:
        return None
    return session.get(Dataset, (model.tenant_id, model.holdout_dataset_id))


def _samples(session: Session, job: Job) -> Dataset | None:
    if job.kind != "unlearn" or job.dataset_id is None:
        return None
    return session.get_one(Dataset, (job.tenant_id, job.dataset_id))


def _start_requests(session: Session, job: Job, excluded: Rows) -> list[Request]:
    """Move the job's requests on, without the rows that were forgotten since they came."""
    move_requests(session, job, ("queued",), status="processing")
    chosen = select(Request).where(
        Request.tenant_id == job.tenant_id,
        Request.job_id == job.id,
        Request.status == "processing",
    )
    asked = session.scalars(
        chosen.order_by(Request.id).execution_options(populate_existing=True)
    ).all()
    for request in asked:
        left = np.setdiff1d(request.rows, excluded)
        num_gone = len(request.rows) - len(left)
        if num_gone:
            applied = request.counts["num_already_applied"] + num_gone
            request.counts = request.counts | {
                "num_records": len(left),
                "num_already_applied": applied,
            }
            request.rows = left
    session.flush()
    return [*asked]


def _refuse_overlap(session: Session, claim: Claim) -> bool:
    """End a ``prepare`` whose holdout was trained on; at upload the files were not read yet."""
    if claim.dataset is None or claim.holdout is None:
        return False
    tenant_id = claim.job.tenant_id
    num = num_overlapping(session, tenant_id, claim.dataset.id, claim.holdout.id)
    if num == 0:
        return False
    detail = f"{num} records of the holdout are records of the training split."
    return _refuse(session, claim, "holdout_overlap", detail)


def _refuse_traceless(session: Session, claim: Claim) -> bool:
    """End an audit whose weights were erased, or whose request others have made pointless."""
    assert claim.version is not None
    assert claim.subject is not None
    if claim.version.blob is None:
        return _refuse(session, claim, "object_erased", "The weights of the version were erased.")
    if not len(claim.subject.rows):
        detail = "None of the request's records was in the training set of this version."
        return _refuse(session, claim, "forget_set_empty", detail)
    return False


def _refuse_replaced(session: Session, claim: Claim) -> bool:
    """End an oracle's training whose version was replaced: it would see what was forgotten."""
    assert claim.version is not None
    assert claim.model is not None
    if claim.version.id == claim.model.current_version_id:
        return False
    return _refuse(session, claim, "version_withdrawn", "The version was replaced by another.")


def _refuse(session: Session, claim: Claim, code: str, detail: str) -> bool:
    end(session, claim.job, "failed", epoch=claim.epoch, error=problem(code, detail))
    return True
