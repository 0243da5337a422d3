"""Verbs over unlearn requests: receive one, read it, take it back."""

from __future__ import annotations

import calendar
import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core import policies
from core.situation import Purpose

from . import admission, models
from . import samples as sent_samples
from .endings import lock, stop
from .erasing import release_samples
from .errors import Conflict, NotFound
from .ids import new
from .quotas import refuse_full_queue, refuse_many_requests
from .tables import Document, Job, Model, Request, Version


def receive(
    session: Session,
    tenant_id: str,
    *,
    model_id: str,
    selector: str,
    record_ids: list[str] | None = None,
    subject: str | None = None,
    class_index: int | str | None = None,
    samples: str | None = None,
    ignore_missing: bool = False,
    policy: policies.Policy = "standard",
    unlearner: Document | None = None,
    options: Document | None = None,
    reason: str | None = None,
    received_at: datetime | None = None,
    meta: Document | None = None,
    purpose: Purpose = "erasure",
    priority: int = 0,
) -> Request:
    """Take in a request: resolve it, refuse it or store it, and give it a job.

    It joins a job that is still queued where everything that decides about the job is equal. One
    that has nothing to forget is completed at once, with a job that says so.

    Args:
        session: of the caller's transaction.
        tenant_id: owner of the model.
        model_id: the model that is to forget.
        selector: ``record_ids``, ``subject``, ``class`` or ``samples``; the argument of that
            kind is needed.
        record_ids: repeated ids count once.
        subject: the raw reference; only its keyed hash is compared, none is stored.
        class_index: a label, or a class name of the dataset; with ``samples`` what all are of.
        samples: id of a dataset sent to be forgotten; it is erased when the request is completed
            or taken back.
        ignore_missing: drop ids that are not in the dataset instead of refusing them.
        policy: decides the ladder and the gates.
        unlearner: one unlearner config, then the only rung.
        options: ``seed``, ``batch_size``, ``bn_policy``, ``time_limit_seconds``.
        reason: the legal ground, for people.
        received_at: when the person asked, if earlier than now.
        meta: the caller's own pairs.
        purpose: erasure, or removal of a poison; it decides about the ladder.
        priority: among the tenant's own jobs; the greater goes first.

    Raises:
        NotFound: if the model or the samples are not the tenant's.
        Conflict: ``model_not_active``, ``dataset_not_ready``, or ``in_use`` if another request is
            to forget the same samples.
        Unacceptable: ``upload_rejected``, ``policy_unavailable``, ``selector_not_applicable``,
            ``records_not_found``, ``class_unknown``, ``class_mismatch``, ``retain_set_too_small``,
            ``dataset_purpose_mismatch``, ``forget_set_empty``, ``holdout_overlap``,
            ``dataset_missing``, ``recipe_missing``, ``holdout_missing``.
        TooMany: ``queue_quota_exceeded`` or ``request_quota_exceeded``.
    """
    now = datetime.now(UTC)
    asked_at = received_at or now
    wish = admission.Wish(
        selector,
        record_ids,
        subject,
        class_index,
        ignore_missing,
        policy,
        unlearner,
        options or {},
        samples,
        purpose,
    )
    # Before the model, in the order of all locks.
    sent = None if samples is None else sent_samples.get(session, tenant_id, samples)
    model, dataset = admission.usable(session, tenant_id, model_id)
    admission.refuse_unavailable(policy)
    admission.refuse_selector(model, selector)
    found = admission.resolve(session, model, sent or dataset, wish)
    if len(found.rows):
        refuse_many_requests(session, tenant_id)
        if dataset is not None:
            admission.refuse_too_small(session, model, dataset, found.rows)
        version = models.current(session, model)
        admission.refuse_empty_ladder(model, dataset, wish, len(found.rows), version)
        job = _join_or_queue(session, model, wish, one_month_after(asked_at), priority)
    else:
        job = _done_job(session, model, wish)
    request = Request(
        tenant_id=tenant_id,
        id=new("req"),
        model_id=model_id,
        job_id=job.id,
        selector=selector,
        selector_class=found.label,
        samples_dataset_id=samples,
        purpose=purpose,
        rows=found.rows,
        counts=found.counts,
        policy=policy,
        unlearner=unlearner,
        reason=reason,
        meta=meta or {},
        received_at=asked_at,
        due_at=one_month_after(asked_at),
    )
    if not len(found.rows):
        request.status, request.outcome, request.completed_at = "completed", "no_influence", now
    session.add(request)
    session.flush()
    return request


def get(session: Session, tenant_id: str, request_id: str) -> Request:
    """Return the request of that id; raise NotFound if the tenant has none."""
    request = session.get(Request, (tenant_id, request_id))
    if request is None:
        raise NotFound
    return request


def cancel(session: Session, tenant_id: str, request_id: str) -> Request:
    """Take a request back: it leaves its job, which is cancelled when nobody is left in it.

    Records that came with it are erased, unless another request still asks for them. Doing it
    again changes nothing.

    Raises:
        Conflict: ``state_conflict`` if the request is done.
    """
    job = lock(session, tenant_id, get(session, tenant_id, request_id).job_id)
    request = session.get(
        Request, (tenant_id, request_id), with_for_update=True, populate_existing=True
    )
    assert job is not None, "a request is stored together with its job"
    assert request is not None, "requests are never deleted"
    if request.job_id != job.id:
        # Its job was tried again while we waited; under the model's lock it is not once more.
        job = lock(session, tenant_id, request.job_id)
        assert job is not None, "a request is stored together with its job"
    if request.status == "cancelled":
        return request
    if request.status in ("applied", "completed"):
        raise Conflict("state_conflict", "The request is done and cannot be cancelled.")
    request.status, request.completed_at = "cancelled", datetime.now(UTC)
    session.flush()
    if num_waiting(session, job) == 0:
        stop(session, job)
    else:
        job.revision += 1
        session.flush()
    release_samples(session, tenant_id, request.samples_dataset_id)
    return request


def num_waiting(session: Session, job: Job) -> int:
    """How many requests the job still has to serve."""
    chosen = select(func.count()).where(
        Request.tenant_id == job.tenant_id,
        Request.job_id == job.id,
        Request.status.in_(("queued", "processing")),
    )
    return session.scalar(chosen) or 0


def one_month_after(at: datetime) -> datetime:
    """One calendar month later (GDPR Art. 12(3)); the month's last day where there is no such day.

    Example:
        >>> one_month_after(datetime(2024, 1, 31, tzinfo=UTC)).date().isoformat()
        '2024-02-29'
    """
    year, month = (at.year, at.month + 1) if at.month < 12 else (at.year + 1, 1)
    day = min(at.day, calendar.monthrange(year, month)[1])
    return at.replace(year=year, month=month, day=day)


def _join_or_queue(
    session: Session, model: Model, wish: admission.Wish, due_at: datetime, priority: int
) -> Job:
    """Return a queued job that does just this, made if there is none; the most urgent decides."""
    key = _join_key(model, wish)
    queued = select(Job).where(
        Job.tenant_id == model.tenant_id,
        Job.model_id == model.id,
        Job.join_key == key,
        Job.status == "queued",
        Job.cancel_requested_at.is_(None),
    )
    job = session.scalars(queued.order_by(Job.id).limit(1).with_for_update()).one_or_none()
    if job is not None:
        job.revision += 1
        job.priority = max(job.priority, priority)
        job.due_at = due_at if job.due_at is None else min(job.due_at, due_at)
    else:
        refuse_full_queue(session, model.tenant_id)
        job = _new_job(model, wish)
        job.join_key, job.priority, job.due_at = key, priority, due_at
        session.add(job)
    session.flush()
    return job


def _new_job(model: Model, wish: admission.Wish) -> Job:
    return Job(
        tenant_id=model.tenant_id,
        id=new("job"),
        kind="unlearn",
        model_id=model.id,
        dataset_id=wish.samples,
        policy=wish.policy,
        unlearner=wish.unlearner,
        options=wish.options,
    )


def _done_job(session: Session, model: Model, wish: admission.Wish) -> Job:
    """Return a job that succeeded because there was nothing to do."""
    job, now = _new_job(model, wish), datetime.now(UTC)
    version = models.current(session, model)
    job.status, job.progress, job.finished_at = "succeeded", 1.0, now
    job.version_id = version.id
    job.result = no_influence(version)
    session.add(job)
    session.flush()
    return job


def no_influence(version: Version) -> Document:
    """The result of a job that had nothing to forget: the version stays."""
    return {
        "outcome": "no_influence",
        "version": version.id,
        "version_number": version.number,
        "published": None,
        "reason": "none of the records was in the training set, or all were forgotten before",
        "cost": {},
    }


def _join_key(model: Model, wish: admission.Wish) -> str:
    """Digest of all that decides about a job but the records themselves."""
    deciding: list[Any] = [
        model.id,
        wish.scope,
        wish.policy,
        wish.unlearner,
        wish.options,
        wish.purpose,
        wish.samples,
    ]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
