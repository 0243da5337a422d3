"""Erasing the records of datasets; their rows stay.

A dataset that came with a request belongs to it: its bytes go once the request is completed, or
once nobody asks for these records any more.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from .tables import Dataset, Record, Request
from .trash import throw

OPEN = ("queued", "processing", "needs_attention")
"""States of requests that still owe something."""


def erase(session: Session, dataset: Dataset) -> None:
    """Throw bytes and index of a locked dataset away; again changes nothing."""
    if dataset.status == "deleted":
        return
    drop_index(session, dataset)
    session.refresh(dataset)
    throw(session, dataset.blob)
    dataset.blob, dataset.status, dataset.deleted_at = None, "deleted", datetime.now(UTC)
    session.flush()


def drop_index(session: Session, dataset: Dataset) -> None:
    """Remove every record of a locked dataset from the index."""
    session.execute(
        delete(Record).where(Record.tenant_id == dataset.tenant_id, Record.dataset_id == dataset.id)
    )


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
