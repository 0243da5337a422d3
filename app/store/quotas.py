"""What one tenant may have, and have waiting."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from . import session as sessions
from .errors import TooMany, Unacceptable
from .tables import Job, Model, Version


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


def refuse_large_model(session: Session, tenant_id: str, num_parameters: int) -> None:
    """Refuse a model that does not fit beside the tenant's others; each counts once.

    Raises:
        Unacceptable: ``quota_model_too_large``.
    """
    most = sessions.settings().max_tenant_parameters
    current = (Version.tenant_id == Model.tenant_id) & (Version.id == Model.current_version_id)
    held = (
        select(func.coalesce(func.sum(Version.num_parameters), 0))
        .join(Model, current)
        .where(Model.tenant_id == tenant_id, Model.status == "active")
    )
    left = most - int(session.scalar(held) or 0)
    if most and num_parameters > left:
        raise Unacceptable(
            "quota_model_too_large",
            f"The model has {num_parameters} parameters, and the tenant's quota of {most} has "
            f"room for {max(0, left)} more.",
        )
