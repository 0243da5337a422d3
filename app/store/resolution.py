"""Which rows of a dataset are meant by ids, by a subject, or by a class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, aliased

from .keyed import subject_hash
from .tables import Record

CHUNK = 5_000
STREAMED = 1_000
"""Rows that are held as Python objects at once."""
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Resolution:
    """What a selector means in one dataset."""

    rows: Rows
    """Training rows, sorted."""
    num_holdout: int = 0
    """Records that were never trained on."""
    missing: frozenset[str] = frozenset()
    """Ids that are not in the dataset; never echoed."""

    @property
    def num_missing(self) -> int:
        """How many ids are not in the dataset."""
        return len(self.missing)


def rows_of_ids(
    session: Session, tenant_id: str, dataset_id: str, ids: Iterable[str]
) -> Resolution:
    """Resolve record ids; repeated ones count once."""
    wanted = frozenset(ids)
    mine = (Record.tenant_id == tenant_id, Record.dataset_id == dataset_id)
    found: list[Any] = []
    storable = sorted(each for each in wanted if _is_storable(each))
    for start in range(0, len(storable), CHUNK):
        same = Record.record_id.in_(storable[start : start + CHUNK])
        chosen = select(Record.row, Record.split, Record.record_id).where(*mine, same)
        found += session.execute(chosen).all()
    rows = np.array(sorted(row.row for row in found if row.split == "train"), dtype=np.int64)
    missing = wanted - {row.record_id for row in found}
    return Resolution(rows, num_holdout=len(found) - len(rows), missing=missing)


def rows_of_subject(session: Session, tenant_id: str, dataset_id: str, subject: str) -> Resolution:
    """Resolve a subject; one that is not there has no rows."""
    same = Record.subject_hash == subject_hash(tenant_id, subject)
    return _rows_of_all(session, tenant_id, dataset_id, same)


def rows_of_class(session: Session, tenant_id: str, dataset_id: str, label: int) -> Resolution:
    """Resolve a class to its training rows; its holdout rows are not counted."""
    return Resolution(_training_rows(session, tenant_id, dataset_id, Record.label == label))


def rows_of_dataset(session: Session, tenant_id: str, dataset_id: str) -> Resolution:
    """Resolve a whole dataset."""
    return _rows_of_all(session, tenant_id, dataset_id)


def num_of_other_classes(session: Session, tenant_id: str, dataset_id: str, label: int) -> int:
    """How many training records of a dataset are not of this class."""
    chosen = select(func.count()).where(
        Record.tenant_id == tenant_id,
        Record.dataset_id == dataset_id,
        Record.split == "train",
        Record.label != label,
    )
    return session.scalar(chosen) or 0


def num_overlapping(session: Session, tenant_id: str, dataset_id: str, holdout_id: str) -> int:
    """How many records of ``holdout_id`` are training records of ``dataset_id``, by id."""
    if dataset_id == holdout_id:
        return 0
    held = aliased(Record)
    chosen = select(func.count()).select_from(Record)
    chosen = chosen.join(
        held, (held.tenant_id == Record.tenant_id) & (held.record_id == Record.record_id)
    ).where(
        Record.tenant_id == tenant_id,
        Record.dataset_id == dataset_id,
        Record.split == "train",
        held.dataset_id == holdout_id,
    )
    return session.scalar(chosen) or 0


def _rows_of_all(
    session: Session, tenant_id: str, dataset_id: str, *conditions: ColumnElement[bool]
) -> Resolution:
    rows = _training_rows(session, tenant_id, dataset_id, *conditions)
    mine = (Record.tenant_id == tenant_id, Record.dataset_id == dataset_id)
    held = select(func.count()).where(*mine, Record.split != "train", *conditions)
    return Resolution(rows, num_holdout=session.scalar(held) or 0)


def _training_rows(
    session: Session, tenant_id: str, dataset_id: str, *conditions: ColumnElement[bool]
) -> Rows:
    """Training rows that meet the conditions, sorted; streamed, for they may be millions."""
    mine = (Record.tenant_id == tenant_id, Record.dataset_id == dataset_id)
    chosen = select(Record.row).where(*mine, Record.split == "train", *conditions)
    found = session.scalars(chosen.execution_options(yield_per=STREAMED))
    rows = np.fromiter(found, dtype=np.int64)
    rows.sort()
    return rows


def _is_storable(text: str) -> bool:
    """Whether a database could hold the text: no NUL (PostgreSQL), no half of a surrogate pair."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
