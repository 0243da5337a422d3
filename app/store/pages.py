"""Lists page by page, newest first, with cursors that only we can make."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select
from sqlalchemy.orm import Session

from .errors import BadRequest
from .keyed import keyed_hash

_SIGNATURE = 32


@dataclass(frozen=True)
class Page:
    """Rows of one page, newest first."""

    rows: Sequence[Any]
    has_more: bool
    """Whether there are more in the direction asked for."""
    next_cursor: str | None
    """Goes on in the direction asked for; None at the end."""


def page(
    session: Session,
    select: Select[Any],
    *,
    tenant: str,
    limit: int,
    after: str | None = None,
    before: str | None = None,
) -> Page:
    """Return one page of the tenant's rows of ``select``, a select of one table.

    Args:
        session: any.
        select: filtered, not ordered.
        tenant: only its rows are shown, whatever ``select`` says.
        limit: most rows of the page.
        after: cursor; rows older than it.
        before: cursor; the rows just newer than it.

    Raises:
        BadRequest: ``cursor_invalid`` for a cursor of another list, of another tenant, or edited.
    """
    table = select.column_descriptions[0]["entity"]
    chosen = select.where(table.tenant_id == tenant)
    if before is not None:
        edge = _read(before, tenant, table.__tablename__)
        chosen = chosen.where(table.id > edge).order_by(table.id.asc())
    else:
        if after is not None:
            chosen = chosen.where(table.id < _read(after, tenant, table.__tablename__))
        chosen = chosen.order_by(table.id.desc())
    found = [*session.scalars(chosen.limit(limit + 1))]
    rows, has_more = found[:limit], len(found) > limit
    cursor = _write(rows[-1].id, tenant, table.__tablename__) if has_more else None
    return Page(rows[::-1] if before is not None else rows, has_more, cursor)


def _write(last_id: str, tenant: str, table: str) -> str:
    return f"{last_id}.{keyed_hash(f'cursor/{table}', tenant, last_id)[:_SIGNATURE]}"


def _read(cursor: str, tenant: str, table: str) -> str:
    last_id = cursor.rpartition(".")[0]
    expected = _write(last_id, tenant, table)
    if not hmac.compare_digest(expected.encode(), cursor.encode("utf-8", "replace")):
        raise BadRequest("cursor_invalid", "The cursor is not one of this list.")
    return last_id
