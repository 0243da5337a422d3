"""Trying a failed job again, because somebody asked for it: a new job, for the failed one stays."""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from .. import admission, models, references
from ..endings import lock
from ..erasing import OPEN
from ..errors import Conflict, NotFound
from ..ids import new
from ..quotas import refuse_full_queue, refuse_spent_day
from ..status import BLAMELESS
from ..tables import Dataset, Job, Model, Request, Version

SAME = (
    *("kind", "model_id", "dataset_id", "version_id", "policy", "unlearner", "options"),
    *("join_key", "priority", "due_at"),
)
"""What the new job takes over."""

UPLOAD_KINDS = ("ingest", "convert", "prepare")
"""Jobs that read or check what was sent."""


def retry(session: Session, tenant_id: str, job_id: str) -> Job:
    """Queue a new job that does what a failed one was to do.

    It serves the requests of the failed one that still need attention.

    Raises:
        NotFound: if the tenant has no such job.
        Conflict: ``state_conflict`` if it has not failed, found an upload unusable (send that
            again), is or was tried again already, nobody waits for it, or its samples are gone;
            ``model_not_active`` if its model was deleted; ``version_withdrawn`` if the version
            that it looked at was; and what ``references.queue_bank`` refuses.
        Unacceptable: ``upload_rejected`` if its model was: no job of that is ever due.
        TooMany: ``queue_quota_exceeded``, or of evidence ``compute_quota_exceeded``.
    """
    job = lock(session, tenant_id, job_id)
    if job is None:
        raise NotFound
    if job.status != "failed":
        raise Conflict(
            "state_conflict", f"Only a failed job can be tried again; it is {job.status}."
        )
    if job.kind in UPLOAD_KINDS and not may_retry(job):
        raise Conflict("state_conflict", "What was rejected must be uploaded again.")
    model = None
    if job.model_id is not None:
        model = session.get_one(Model, (tenant_id, job.model_id))
        if model.status != "active":
            raise Conflict("model_not_active", "The model was deleted.")
        version = models.current(session, model)
        if version.status == "rejected":
            raise admission.rejected(version)
    refuse_full_queue(session, tenant_id)
    again = Job(tenant_id=tenant_id, id=new("job"), retry_of_id=job.id)
    for name in SAME:
        setattr(again, name, getattr(job, name))
    if job.kind == "unlearn":
        again.version_id = None
        _take_over(session, job, again)
    elif job.kind in UPLOAD_KINDS:
        _check_again(session, job)
        session.add(again)
    else:
        assert model is not None, "evidence is of a model"
        refuse_spent_day(session, tenant_id)
        _refuse_repeated(session, job, model)
        session.add(again)
    session.flush()
    return again


def may_retry(job: Job) -> bool:
    """Whether the cause of a failed job allows another try: not if an upload was unusable."""
    code = None if job.error is None else job.error["code"]
    return code in BLAMELESS if job.kind in UPLOAD_KINDS else code != "upload_rejected"


def _check_again(session: Session, job: Job) -> None:
    """Let go of the cause for which an upload was not read or checked; refuse a second time."""
    later = select(Job.id).where(Job.tenant_id == job.tenant_id, Job.retry_of_id == job.id)
    if session.scalar(later.limit(1)) is not None:
        raise Conflict("state_conflict", "The job was tried again already.")
    upload: Dataset | Version
    if job.kind == "ingest":
        upload = session.get_one(Dataset, (job.tenant_id, job.dataset_id))
    else:
        key = (job.tenant_id, job.version_id)
        upload = session.get_one(Version, key, with_for_update=True, populate_existing=True)
    if upload.blob is None:
        raise Conflict("state_conflict", "The bytes that the job reads were erased.")
    upload.rejection = None


def _take_over(session: Session, job: Job, again: Job) -> None:
    """Have the requests that need attention wait for the new job."""
    waiting = (
        Request.tenant_id == job.tenant_id,
        Request.job_id == job.id,
        Request.status == "needs_attention",
    )
    found = session.scalars(select(Request).where(*waiting).with_for_update()).all()
    if not found:
        raise Conflict("state_conflict", "No request waits for this job any more.")
    for request in found:
        _refuse_rivals(session, request)
    session.add(again)
    session.flush()
    moved = update(Request).where(*waiting)
    values = {"job_id": again.id, "status": "queued", "outcome": None, "problem": None}
    session.execute(moved.values(**values).execution_options(synchronize_session="fetch"))
    job.revision += 1


def _refuse_rivals(session: Session, request: Request) -> None:
    """Refuse if another open request has the same samples, or another that is done had them."""
    if request.samples_dataset_id is None:
        return
    samples = session.get_one(Dataset, (request.tenant_id, request.samples_dataset_id))
    if samples.status == "deleted":
        raise Conflict("state_conflict", "The samples were erased: another request forgot them.")
    others = select(Request.id).where(
        Request.tenant_id == request.tenant_id,
        Request.samples_dataset_id == request.samples_dataset_id,
        Request.status.in_([state for state in OPEN if state != "needs_attention"]),
    )
    if session.scalar(others.limit(1)) is not None:
        raise Conflict("state_conflict", "Another request for the same samples is under way.")


def _refuse_repeated(session: Session, job: Job, model: Model) -> None:
    """Refuse evidence that is being gathered again already, or that there is no use in any more."""
    again = select(Job.id).where(
        Job.tenant_id == job.tenant_id,
        Job.retry_of_id == job.id,
        Job.status.in_(("queued", "running")),
    )
    if session.scalar(again.limit(1)) is not None:
        raise Conflict("state_conflict", "The job is being tried again already.")
    if job.kind == "bank":
        references.without_bank(session, job.tenant_id, model.id)
    if job.kind == "oracle" and job.version_id != model.current_version_id:
        raise Conflict("version_withdrawn", "The version was replaced by another.")
    if job.version_id is None:
        return
    version = session.get_one(Version, (job.tenant_id, job.version_id))
    if version.blob is None:
        raise Conflict("version_withdrawn", "The weights of the version were erased.")
