"""Lists: cursors, filters, and the ``Link`` to the next page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import Select
from sqlalchemy.orm import Session

from ..store import pages
from ..store.errors import BadRequest
from ..store.keys import Caller
from .shapes import Page

Item = TypeVar("Item", bound=BaseModel)


@dataclass(frozen=True)
class Paging:
    """Which page is asked for."""

    limit: int
    after: str | None
    before: str | None


def paging(
    limit: Annotated[int, Query(ge=1, le=100, description="Most items on the page.")] = 20,
    after: Annotated[
        str | None, Query(max_length=512, description="`next_cursor` of the page before.")
    ] = None,
    before: Annotated[
        str | None, Query(max_length=512, description="A cursor; items newer than it.")
    ] = None,
) -> Paging:
    """Read the paging parameters."""
    if after is not None and before is not None:
        raise BadRequest("invalid_parameter", "Give either after or before.")
    return Paging(limit, after, before)


Pages = Annotated[Paging, Depends(paging)]


def page_of(
    http_request: Request,
    http_response: Response,
    session: Session,
    caller: Caller,
    select: Select[Any],
    paging: Paging,
    shape: Callable[[Sequence[Any]], list[Item]],
) -> Page[Item]:
    """Return one page of ``select``, and put the ``Link`` to the next one on the answer."""
    found = pages.page(
        session,
        select,
        tenant=caller.tenant_id,
        limit=paging.limit,
        after=paging.after,
        before=paging.before,
    )
    if found.next_cursor is not None:
        way, rel = ("before", "prev") if paging.before is not None else ("after", "next")
        asked = http_request.query_params.multi_items()
        kept = [(name, value) for name, value in asked if name not in ("after", "before")]
        query = urlencode([*kept, (way, found.next_cursor)])
        http_response.headers["Link"] = f'<{http_request.url.path}?{query}>; rel="{rel}"'
    return Page[Item](
        data=shape(found.rows), has_more=found.has_more, next_cursor=found.next_cursor
    )
