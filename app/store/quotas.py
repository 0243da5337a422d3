"""What one tenant may have, and have waiting."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select, text
from sqlalchemy.orm import Session

from . import session as sessions
from .errors import TooMany, Unacceptable
from .tables import Job, Model, Request, Tenant, Version


def refuse_full_queue(session: Session, tenant_id: str) -> None:
    """Refuse one more job of a tenant that has as many queued as it may have.

    Calls at the same moment may exceed the quota by as many as they are.

    Raises:
        TooMany: ``queue_quota_exceeded``.
    """
    most = sessions.settings().max_queued_jobs
    waiting = select(Job.id).where(Job.tenant_id == tenant_id, Job.status == "queued")
    if _are_there(session, waiting, most):
        detail = f"{most} jobs of this tenant are queued already; nothing was taken in."
        raise TooMany("queue_quota_exceeded", detail, headers={"Retry-After": "60"})


def refuse_many_requests(session: Session, tenant_id: str) -> None:
    """Refuse one more request of a tenant that has as many open as it may have.

    Many may share one job, and each keeps its rows. Calls at the same moment may exceed the quota
    by as many as they are.

    Raises:
        TooMany: ``request_quota_exceeded``.
    """
    most = sessions.settings().max_open_requests
    # Spelt as in the partial index of open requests, which is all that need be read.
    is_open = text("status in ('queued', 'processing')")
    waiting = select(Request.samples_dataset_id).where(Request.tenant_id == tenant_id, is_open)
    if _are_there(session, waiting, most):
        detail = f"{most} requests of this tenant are open already; nothing was taken in."
        raise TooMany("request_quota_exceeded", detail, headers={"Retry-After": "60"})


def _are_there(session: Session, waiting: Select[Any], most: int) -> bool:
    """Whether there are at least so many rows; no more than that are read."""
    found = session.scalar(select(func.count()).select_from(waiting.limit(most).subquery()))
    return (found or 0) >= most


def refuse_large_model(session: Session, tenant_id: str, num_parameters: int) -> None:
    """Refuse a model that does not fit beside the tenant's others; each counts once.

    Raises:
        Unacceptable: ``quota_model_too_large``.
    """
    most = sessions.settings().max_tenant_parameters
    if not most:
        return
    # Locked, so that two calls at once cannot both find the last room.
    session.get_one(Tenant, tenant_id, with_for_update={"key_share": True})
    current = (Version.tenant_id == Model.tenant_id) & (Version.id == Model.current_version_id)
    held = (
        select(func.coalesce(func.sum(Version.num_parameters), 0))
        .join(Model, current)
        .where(Model.tenant_id == tenant_id, Model.status == "active")
    )
    left = most - int(session.scalar(held) or 0)
    if num_parameters > left:
        raise Unacceptable(
            "quota_model_too_large",
            f"The model has {num_parameters} parameters, and the tenant's quota of {most} has "
            f"room for {max(0, left)} more.",
        )
