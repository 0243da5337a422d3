"""Bytes whose rows are gone: written down with the row's change, removed afterwards."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from .tables import Dataset, Job, Model, Trash, Version


def throw(session: Session, *keys: str | None) -> None:
    """Have the bytes under these blob keys removed once the transaction is committed."""
    for key in keys:
        if key is not None:
            session.merge(Trash(blob=key))
    session.flush()


def pending(session: Session, limit: int | None = 1000) -> list[str]:
    """Blob keys whose bytes are to be removed, oldest first."""
    chosen = select(Trash.blob).order_by(Trash.created_at, Trash.blob).limit(limit)
    return [*session.scalars(chosen)]


def removed(session: Session, keys: Iterable[str]) -> None:
    """Strike out keys whose bytes are gone."""
    session.execute(delete(Trash).where(Trash.blob.in_([*keys])))


def named(session: Session) -> set[str]:
    """Every blob key whose bytes a row counts on."""
    columns = (
        Dataset.blob,
        Version.blob,
        Version.importance_blob,
        Model.bank_blob,
        Job.checkpoint_blob,
    )
    return {key for column in columns for key in session.scalars(select(column)) if key}
