"""What one tenant may have, and have waiting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Select, func, or_, select, text
from sqlalchemy.orm import Session

from . import clock
from . import session as sessions
from .errors import TooLarge, TooMany, Unacceptable
from .status import NEEDS
from .tables import Dataset, Job, Model, Request, Tenant, Version


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


def refuse_spent_day(session: Session, tenant_id: str) -> None:
    """Refuse to gather more evidence for a tenant whose jobs computed for as long as they may.

    Never asked for unlearning, which counts: erasure is owed to somebody else. Calls at the same
    moment may exceed the quota by as many as they are.

    Raises:
        TooMany: ``compute_quota_exceeded``, with ``limit_minutes`` and ``used_minutes``.
    """
    most = sessions.settings().max_gpu_minutes_per_day
    if not most:
        return
    a_day_ago = datetime.now(UTC) - timedelta(days=1)
    took = func.coalesce(clock.seconds(Job.finished_at), clock.now()) - clock.seconds(
        Job.started_at
    )
    spent = select(func.sum(took)).where(
        Job.tenant_id == tenant_id,
        Job.kind.in_(kind for kind, need in NEEDS.items() if need == "gpu"),
        or_(Job.status == "running", Job.finished_at > a_day_ago),
    )
    used = int(session.scalar(spent) or 0) // 60
    if used >= most:
        raise TooMany(
            "compute_quota_exceeded",
            f"Jobs of this tenant computed for {used} minutes within a day, of {most} that they "
            "may; requests to forget are taken in all the same.",
            headers={"Retry-After": "3600"},
            extra={"limit_minutes": most, "used_minutes": used},
        )


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
    lock(session, tenant_id)
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


def refuse_much_storage(
    session: Session, tenant_id: str, size_bytes: int, *, on_their_way: int = 0
) -> None:
    """Refuse bytes that do not fit beside what the tenant has stored.

    Args:
        session: of the caller's transaction.
        tenant_id: whose they would be.
        size_bytes: of the new file.
        on_their_way: bytes of other files that will be stored.

    Raises:
        TooLarge: ``quota_exceeded``, with ``limit_bytes`` and ``used_bytes``.
    """
    most = sessions.settings().max_tenant_bytes
    if not most:
        return
    lock(session, tenant_id)
    used = on_their_way
    for table in (Dataset, Version):
        held = select(func.sum(table.size_bytes)).where(
            table.tenant_id == tenant_id, table.blob.is_not(None)
        )
        used += int(session.scalar(held) or 0)
    if size_bytes > most - used:
        raise TooLarge(
            "quota_exceeded",
            f"{size_bytes} bytes do not fit: {used} of the {most} bytes that this tenant may store "
            "are taken. Delete datasets or models that are not needed any more.",
            extra={"limit_bytes": most, "used_bytes": used},
        )


def lock(session: Session, tenant_id: str) -> None:
    """Lock the tenant, so that two calls at once cannot both find the last room."""
    session.get_one(Tenant, tenant_id, with_for_update={"key_share": True})
