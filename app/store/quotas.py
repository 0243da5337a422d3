"""What one tenant may have waiting."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from . import session as sessions
from .errors import TooMany
from .tables import Job


def refuse_full_queue(session: Session, tenant_id: str) -> None:
    """Refuse one more job of a tenant that has as many queued as it may have.

    Calls at the same moment may exceed the quota by as many as they are.

    Raises:
        TooMany: ``queue_quota_exceeded``.
    """
    most = sessions.settings().max_queued_jobs
    waiting = select(Job.id).where(Job.tenant_id == tenant_id, Job.status == "queued")
    found = session.scalar(select(func.count()).select_from(waiting.limit(most).subquery()))
    if (found or 0) >= most:
        raise TooMany(
            "queue_quota_exceeded",
            f"{most} jobs of this tenant are queued already; nothing was taken in.",
            headers={"Retry-After": "60"},
        )
