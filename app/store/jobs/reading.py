"""Jobs as their readers see them."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from .. import clock
from ..endings import lock, stop
from ..errors import Conflict, NotFound
from ..requests import num_waiting
from ..status import JOB_TERMINAL
from ..tables import Document, Job, Rung
from .queueing import inputs_are_ready


def get(session: Session, tenant_id: str, job_id: str) -> Job:
    """Return the job of that id; raise NotFound if the tenant has none."""
    job = session.get(Job, (tenant_id, job_id))
    if job is None:
        raise NotFound
    return job


def rungs(session: Session, tenant_id: str, job_id: str) -> list[Document]:
    """Return what was measured on each rung that was tried (``core.findings.Rung``), in order."""
    chosen = select(Rung.body).where(Rung.tenant_id == tenant_id, Rung.job_id == job_id)
    return [*session.scalars(chosen.order_by(Rung.index))]


def waiting_on(session: Session, job: Job) -> str | None:
    """What a queued job waits for; None for one that is not queued.

    Returns:
        ``model`` while its inputs are being read or checked, ``model_lock`` while another job of
        the model runs, ``backoff`` after a runner died, ``storage_full`` while the disk may have no
        room, else ``worker``.
    """
    if job.status != "queued":
        return None
    one = select(Job.id).where(Job.tenant_id == job.tenant_id, Job.id == job.id)
    if session.scalar(one.where(inputs_are_ready())) is None:
        return "model"
    other = aliased(Job)
    running = select(other.id).where(
        other.tenant_id == job.tenant_id,
        other.model_id == job.model_id,
        other.status == "running",
    )
    if job.model_id is not None and session.scalar(running.limit(1)) is not None:
        return "model_lock"
    if session.scalar(one.where(Job.run_after > clock.now())) is not None:
        return job.held_for or "backoff"
    return "worker"


def cancel(session: Session, tenant_id: str, job_id: str) -> Job:
    """Cancel a queued job, or ask a running one to stop; again changes nothing.

    Raises:
        Conflict: ``job_shared`` if it serves several requests, which are to be cancelled one by
            one; ``state_conflict`` if it has ended otherwise.
    """
    job = lock(session, tenant_id, job_id)
    if job is None:
        raise NotFound
    if job.status in JOB_TERMINAL:
        if job.status != "cancelled":
            raise Conflict("state_conflict", f"The job has {job.status}.")
        return job
    if num_waiting(session, job) > 1:
        raise Conflict("job_shared", "The job serves several requests; cancel those instead.")
    stop(session, job)
    return job
