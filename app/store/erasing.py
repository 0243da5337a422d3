"""Erasing the records of datasets; their rows stay.

Bytes and index of a dataset may be large, so they go piece by piece once it is marked as gone. A
dataset that came with a request belongs to it: its bytes go once the request is completed, or
once nobody asks for these records any more.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import delete, exists, func, select
from sqlalchemy.orm import Session

from .tables import Dataset, Record, Request
from .trash import throw

OPEN = ("queued", "processing", "needs_attention")
"""States of requests that still owe something."""

GONE = ("deleted", "rejected")
"""States of datasets that nothing reads any more."""

CHUNK = 10_000
"""Rows of an index that one transaction removes: on SQLite every other writer waits for it."""


def erase(session: Session, dataset: Dataset) -> None:
    """Have bytes and index of a locked dataset removed once this is committed; again: nothing."""
    if dataset.status == "deleted":
        return
    throw(session, dataset.blob)
    dataset.blob, dataset.status, dataset.deleted_at = None, "deleted", datetime.now(UTC)
    session.flush()


def drop_index(session: Session) -> bool:
    """Remove a piece of the index of a dataset that is gone; return whether there was any."""
    mine = (Record.tenant_id == Dataset.tenant_id, Record.dataset_id == Dataset.id)
    chosen = select(Dataset).where(Dataset.status.in_(GONE), exists().where(*mine)).limit(1)
    dataset = session.scalars(chosen.with_for_update(skip_locked=True)).first()
    if dataset is None:
        return False
    own = (Record.tenant_id == dataset.tenant_id, Record.dataset_id == dataset.id)
    last = session.scalar(select(func.max(Record.row)).where(*own)) or 0
    session.execute(
        delete(Record)
        .where(*own, Record.row > last - CHUNK)
        .execution_options(synchronize_session=False)
    )
    return True


def erase_samples(session: Session, tenant_id: str, dataset_id: str | None) -> None:
    """Erase the records that came with a completed request; None: none came."""
    if dataset_id is not None:
        erase(session, _locked(session, tenant_id, dataset_id))


def release_samples(session: Session, tenant_id: str, dataset_id: str | None) -> None:
    """Erase the records that came with a request, unless another one still asks for them."""
    if dataset_id is None:
        return
    waiting = select(Request.id).where(
        Request.tenant_id == tenant_id,
        Request.samples_dataset_id == dataset_id,
        Request.status.in_(OPEN),
    )
    if session.scalars(waiting.limit(1)).first() is None:
        erase(session, _locked(session, tenant_id, dataset_id))


def _locked(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    key = (tenant_id, dataset_id)
    return session.get_one(Dataset, key, with_for_update=True, populate_existing=True)
