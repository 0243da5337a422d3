"""What brings jobs back whose worker is gone."""

from __future__ import annotations

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from .. import clock, idempotency, workers
from .. import session as sessions
from ..endings import end, lock, problem, requeue
from ..tables import Job


def sweep(session: Session) -> dict[str, int]:
    """Free expired leases, and forget remembered answers and workers past their time.

    Returns:
        How many of each, by name.
    """
    counts = _free(session, Job.lease_until < clock.now())
    counts["answers_forgotten"] = idempotency.purge(session)
    counts["workers_forgotten"] = workers.purge(session)
    return counts


def free_all(session: Session) -> int:
    """Free every running job at once; only for a service that is the only one on its database."""
    return sum(_free(session, Job.status == "running").values())


def _free(session: Session, condition: ColumnElement[bool]) -> dict[str, int]:
    """Put running jobs that meet the condition back, or end them where that is due.

    A job that somebody holds is about to move on, and keeps no other from being freed.
    """
    chosen = select(Job.tenant_id, Job.id, Job.epoch).where(Job.status == "running", condition)
    counts = {"leases_freed": 0, "jobs_failed": 0, "jobs_cancelled": 0}
    for tenant_id, job_id, epoch in session.execute(chosen.order_by(Job.id)).all():
        job = lock(session, tenant_id, job_id, is_patient=False)
        renewed = select(Job.id).where(Job.tenant_id == tenant_id, Job.id == job_id, ~condition)
        if job is None or job.status != "running" or job.epoch != epoch:
            continue
        if session.scalar(renewed) is not None:
            continue
        counts[_free_one(session, job)] += 1
    return counts


def _free_one(session: Session, job: Job) -> str:
    lost, most = job.lost_leases + 1, sessions.settings().max_lost_leases
    if job.cancel_requested_at is not None:
        end(session, job, "cancelled", epoch=job.epoch)
        return "jobs_cancelled"
    if lost >= most:
        job.lost_leases = lost
        session.flush()
        error = problem("worker_lost", f"The job lost its worker {lost} times.")
        end(session, job, "failed", epoch=job.epoch, error=error)
        return "jobs_failed"
    requeue(session, job, epoch=job.epoch, lost_leases=lost)
    return "leases_freed"
