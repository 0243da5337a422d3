"""Which queued jobs may run now, and which of them are to be rung."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, and_, case, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from .. import clock, workers
from .. import session as sessions
from ..status import EVIDENCE_KINDS
from ..tables import Dataset, Job, Model, Version

MIN_WINDOW = 32


def due(session: Session, limit: int | None = None) -> list[str]:
    """Return ids of jobs to ring, oldest first and at most one per model.

    Within a model what only gathers evidence goes last: it can take hours, and erasure is due.

    Only a window of the queue is ever rung, so that the broker holds tens of ids, whatever waits.

    Args:
        session: any.
        limit: size of the window; by default twice what the living workers can do at once, and
            at least 32.
    """
    window = limit or max(MIN_WINDOW, 2 * workers.slots(session))
    lane = func.coalesce(Job.model_id, Job.id)
    last = case((Job.kind.in_(EVIDENCE_KINDS), 1), else_=0)
    place = func.row_number().over(partition_by=lane, order_by=(last, Job.id)).label("place")
    may_run = select(Job.id, Job.dispatched_at, place).where(is_due()).subquery()
    first = (
        select(may_run.c.id, may_run.c.dispatched_at)
        .where(may_run.c.place == 1)
        .order_by(may_run.c.id)
        .limit(window)
        .subquery()
    )
    heard_until = clock.now() - sessions.settings().redispatch_seconds
    unheard = or_(first.c.dispatched_at.is_(None), first.c.dispatched_at <= heard_until)
    return [*session.scalars(select(first.c.id).where(unheard).order_by(first.c.id))]


def stamp_dispatched(session: Session, job_ids: Iterable[str]) -> None:
    """Note that these jobs were rung just now."""
    session.execute(
        update(Job)
        .where(Job.id.in_([*job_ids]), Job.status == "queued")
        .values(dispatched_at=clock.now())
        .execution_options(synchronize_session=False)
    )


def is_due() -> ColumnElement[bool]:
    """Whether a job may run now: queued, not put off, its inputs there, its model free."""
    other = aliased(Job)
    return and_(
        Job.status == "queued",
        Job.cancel_requested_at.is_(None),
        Job.run_after <= clock.now(),
        inputs_are_ready(),
        ~exists(
            select(other.id).where(other.model_id == Job.model_id, other.status == "running")
        ).correlate(Job),
    )


def inputs_are_ready() -> ColumnElement[bool]:
    """Whether what the job works on was read and accepted."""
    unread = (
        select(Dataset.id)
        .join(
            Model,
            (Model.tenant_id == Dataset.tenant_id)
            & Dataset.id.in_((Model.dataset_id, Model.holdout_dataset_id)),
        )
        .where(
            Model.tenant_id == Job.tenant_id, Model.id == Job.model_id, Dataset.status != "ready"
        )
    )
    ready = (
        select(Version.id)
        .join(
            Model,
            (Model.tenant_id == Version.tenant_id) & (Model.current_version_id == Version.id),
        )
        .where(
            Model.tenant_id == Job.tenant_id, Model.id == Job.model_id, Version.status == "ready"
        )
    )
    return or_(
        Job.kind.in_(("ingest", "convert")),
        and_(Job.kind == "prepare", ~exists(unread).correlate(Job)),
        and_(Job.kind.in_(("unlearn", *EVIDENCE_KINDS)), exists(ready).correlate(Job)),
    )
