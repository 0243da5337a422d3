"""Jobs as their readers see them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import case, exists, func, select
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


def waiting_on(session: Session, rows: Sequence[Job]) -> dict[str, str]:
    """What each queued job of a tenant waits for, by its id.

    Returns:
        ``model`` while its inputs are being read or checked, ``model_lock`` while another job of
        the model runs, ``backoff`` after a runner died, ``storage_full`` while the disk may have no
        room, else ``worker``.
    """
    queued = [job.id for job in rows if job.status == "queued"]
    if not queued:
        return {}
    other = aliased(Job)
    running = select(other.id).where(
        other.tenant_id == Job.tenant_id,
        other.model_id == Job.model_id,
        other.status == "running",
    )
    reason = case(
        (~inputs_are_ready(), "model"),
        (exists(running).correlate(Job), "model_lock"),
        (Job.run_after > clock.now(), func.coalesce(Job.held_for, "backoff")),
        else_="worker",
    )
    chosen = select(Job.id, reason.label("reason")).where(
        Job.tenant_id == rows[0].tenant_id, Job.id.in_(queued)
    )
    return {row.id: row.reason for row in session.execute(chosen)}


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
