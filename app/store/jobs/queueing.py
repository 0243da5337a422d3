"""Which queued jobs may run now, whose turn it is, and which of them are to be rung.

Tenants take turns: what counts is how many jobs of a tenant run or go before this one. Within a
tenant what only gathers evidence goes last, for it can take hours and erasure is due; then decide
priority, the day the request is due, and age.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from app.settings import Need

from .. import clock, workers
from .. import session as sessions
from ..status import EVIDENCE_KINDS, NEEDS
from ..tables import Dataset, Job, Model, Version

MIN_WINDOW = 32
NEVER = datetime(9999, 1, 1, tzinfo=UTC)


def due(session: Session, limit: int | None = None) -> list[str]:
    """Return ids of jobs to ring: for each need, in the order of their turns, one per model.

    Only a window of the queue is ever rung, so that the broker holds tens of ids, whatever waits.
    Each need has its own: what waits for an accelerator must not keep other workers idle.

    Args:
        session: any.
        limit: size of the window; by default twice what the living workers can do at once, and
            at least 32.
    """
    size = limit or _window(session)
    return [job_id for need in sorted({*NEEDS.values()}) for job_id in _due(session, need, size)]


def _due(session: Session, need: Need, limit: int) -> list[str]:
    first = _in_turn(kinds_of((need,))).limit(limit).subquery()
    heard_until = clock.now() - sessions.settings().redispatch_seconds
    unheard = or_(first.c.dispatched_at.is_(None), first.c.dispatched_at <= heard_until)
    return [*session.scalars(select(first.c.id).where(unheard).order_by(first.c.number))]


def next_ids(session: Session, needs: Collection[Need]) -> list[str]:
    """Return ids of the jobs whose turn it is for a worker that can do these, rung or not.

    As many as all living workers could take just now, so that each finds one that is left.
    """
    turns = _in_turn(kinds_of(needs)).limit(_window(session))
    return [*session.scalars(turns)]


def kinds_of(needs: Collection[Need]) -> tuple[str, ...]:
    """Return the kinds of jobs that a worker does which can do these."""
    return tuple(kind for kind, need in NEEDS.items() if need in needs)


def _window(session: Session) -> int:
    return max(MIN_WINDOW, 2 * workers.slots(session))


def needs_of(session: Session, job_ids: Collection[str]) -> dict[str, Need]:
    """Return for each of these jobs what kind of worker it needs."""
    chosen = select(Job.id, Job.kind).where(Job.id.in_(job_ids))
    return {job_id: NEEDS[kind] for job_id, kind in session.execute(chosen)}


@cache  # to put it together takes longer than to run it
def _in_turn(kinds: tuple[str, ...]) -> Select[Any]:
    """Due jobs of these kinds, the first of each model, in the order of their turns."""
    lane = func.coalesce(Job.model_id, Job.id)
    merit = (
        case((Job.kind.in_(EVIDENCE_KINDS), 1), else_=0),
        -Job.priority,
        func.coalesce(Job.due_at, NEVER),
        Job.id,
    )
    rank = func.row_number().over(order_by=merit).label("rank")
    place = func.row_number().over(partition_by=lane, order_by=merit).label("place")
    may_run = (
        select(Job.id, Job.tenant_id, Job.dispatched_at, rank, place)
        .where(is_due(), Job.kind.in_(kinds))
        .subquery()
    )
    other = aliased(Job)
    num_running = (
        select(func.count())
        .where(other.tenant_id == may_run.c.tenant_id, other.status == "running")
        .scalar_subquery()
    )
    before = func.row_number().over(partition_by=may_run.c.tenant_id, order_by=may_run.c.rank)
    turn = (before + num_running).label("turn")
    turns = (
        select(may_run.c.id, may_run.c.dispatched_at, may_run.c.rank, turn)
        .where(may_run.c.place == 1)
        .subquery()
    )
    number = func.row_number().over(order_by=(turns.c.turn, turns.c.rank)).label("number")
    return select(turns.c.id, turns.c.dispatched_at, number).order_by(turns.c.turn, turns.c.rank)


def stamp_dispatched(session: Session, job_ids: Iterable[str]) -> None:
    """Note that these jobs were rung just now."""
    session.execute(
        update(Job)
        .where(Job.id.in_([*job_ids]), Job.status == "queued")
        .values(dispatched_at=clock.now())
        .execution_options(synchronize_session=False)
    )


@cache
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
