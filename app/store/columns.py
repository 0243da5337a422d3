"""Column types shared by all tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from sqlalchemy import DateTime, Dialect, LargeBinary
from sqlalchemy.types import TypeDecorator


class UTCDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime on every database; naive values are refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC, without zone on SQLite."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002  # SQLAlchemy's signature
    ) -> datetime | None:
        """Return an aware UTC datetime."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


PACKED = np.dtype("<u4")


class Rows(TypeDecorator[Any]):
    """A sorted, unique array of dataset row numbers, four bytes each."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(
        self,
        value: Any,
        dialect: Dialect,  # noqa: ARG002  # SQLAlchemy's signature
    ) -> bytes | None:
        """Sort, deduplicate and pack."""
        if value is None:
            return None
        return np.unique(np.asarray(value, dtype=PACKED)).tobytes()

    def process_result_value(
        self,
        value: bytes | None,
        dialect: Dialect,  # noqa: ARG002  # SQLAlchemy's signature
    ) -> Any:
        """Unpack to int64[N]."""
        return None if value is None else unpack(value)

    def compare_values(self, x: Any, y: Any) -> bool:
        """Whether they are the same rows; ``==`` of arrays does not say, or raises."""
        return np.array_equal(x, y)


def unpack(packed: bytes) -> Any:
    """Unpack one or several sets of rows, one after the other, to their union: int64[N], sorted."""
    return np.unique(np.frombuffer(packed, dtype=PACKED)).astype(np.int64)
