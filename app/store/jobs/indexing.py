"""The index of a dataset that is being read: written piece by piece, read once it is ready."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from sqlalchemy import Connection, delete, exc, func, select
from sqlalchemy.orm import Session

from ..keyed import subject_hash
from ..tables import Dataset, Record
from .claiming import hold
from .claims import Claim

CHUNK = 2_000
"""Rows of an index that one transaction writes: on SQLite every other writer waits for it."""
COLUMNS = ", ".join(column.name for column in Record.__table__.columns)
IndexRow = Sequence[Any]
"""``(record id, label, split, subject or None)``, one per row of the canonical file, in order."""


def clear_index(session: Session, claim: Claim) -> bool:
    """Remove a piece of what an earlier attempt indexed; return whether there was any.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job = hold(session, claim)
    mine = (Record.tenant_id == job.tenant_id, Record.dataset_id == job.dataset_id)
    last = session.scalar(select(func.max(Record.row)).where(*mine))
    if last is not None:
        session.execute(delete(Record).where(*mine, Record.row > last - CHUNK))
    return last is not None


def add_to_index(session: Session, claim: Claim, start: int, index: Iterable[IndexRow]) -> bool:
    """Index some records of a dataset that is being read; again, with all after them, anew.

    Args:
        session: of the caller's transaction.
        claim: of the attempt.
        start: row number of the first.
        index: one entry per row, at most ``CHUNK``; subjects are hashed here and go no further.

    Returns:
        False if nobody wants them any more; nothing was written then.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job = hold(session, claim)
    dataset = session.get_one(Dataset, (job.tenant_id, job.dataset_id))
    if dataset.status != "validating" or job.cancel_requested_at is not None:
        return False
    mine = (Record.tenant_id == job.tenant_id, Record.dataset_id == dataset.id)
    session.execute(delete(Record).where(*mine, Record.row >= start))
    _insert_records(session, dataset, start, index)
    return True


def _insert_records(
    session: Session, dataset: Dataset, start: int, index: Iterable[IndexRow]
) -> None:
    """Insert the index rows as fast as the driver can: a transaction is open meanwhile."""
    tenant_id, connection = dataset.tenant_id, session.connection()
    rows = (
        (tenant_id, dataset.id, row, record_id, label, split, _hash(tenant_id, subject))
        for row, (record_id, label, split, subject) in enumerate(index, start)
    )
    if connection.dialect.name == "postgresql":
        _copy(connection, rows)
        return
    marks = ", ".join("?" * len(COLUMNS.split(",")))
    connection.exec_driver_sql(
        f"insert into records ({COLUMNS}) values ({marks})",  # noqa: S608  # no input in it
        [*rows],
    )


def _copy(connection: Connection, rows: Iterable[IndexRow]) -> None:
    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor, cursor.copy(f"copy records ({COLUMNS}) from stdin") as copy:
            for row in rows:
                copy.write_row(row)
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        # As SQLAlchemy says it, whom the driver was asked behind: whoever waits for a database
        # that is away knows no other.
        raise exc.OperationalError("copy records", None, error) from error


def _hash(tenant_id: str, subject: str | None) -> str | None:
    return None if subject is None else subject_hash(tenant_id, subject)
