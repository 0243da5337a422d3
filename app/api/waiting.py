"""Cheap polling: ETag and 304, ``Retry-After``, and ``Prefer: wait`` without holding a thread."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

LONGEST_WAIT_SECONDS = 60
SHORTEST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
Item = TypeVar("Item", bound=BaseModel)


def preferred_wait(
    prefer: Annotated[
        str | None,
        Header(
            description="`wait=30` holds the answer up to that many seconds (at most 60), until "
            "there is nothing left to wait for."
        ),
    ] = None,
) -> float | None:
    """Read ``Prefer: wait``; preferences that cannot be read are no errors (RFC 7240)."""
    match = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})", prefer or "", re.IGNORECASE)
    return min(int(match[1]), LONGEST_WAIT_SECONDS) if match else None


Wait = Annotated[float | None, Depends(preferred_wait)]
IfNoneMatch = Annotated[
    str | None, Header(description="ETag of what you have; 304 when it is still that.")
]
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "It is still what `If-None-Match` names."}
}
"""For ``responses=`` of every route that takes ``If-None-Match``."""


async def settled(
    http_request: Request,
    wait: float | None,
    read: Callable[[], Item],
    done: Callable[[Item], bool],
) -> Item:
    """Read until ``done`` or the time is up, in short reads that hold no session between them."""
    deadline = time.monotonic() + (wait or 0)
    pause = SHORTEST_PAUSE_SECONDS
    item = await run_in_threadpool(read)
    while not done(item) and time.monotonic() < deadline:
        if await http_request.is_disconnected():
            break
        await asyncio.sleep(min(pause, max(deadline - time.monotonic(), 0)))
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
        item = await run_in_threadpool(read)
    return item


def conditional(
    item: BaseModel,
    if_none_match: str | None,
    *,
    wait: float | None = None,
    retry_after: int | None = None,
) -> Response:
    """Answer with ``item`` and its ETag, or 304 if the caller has it already."""
    body = item.model_dump_json().encode()
    etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Vary": "Authorization, Prefer"}
    if wait is not None:
        headers["Preference-Applied"] = "wait"
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if matches(etag, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def matches(etag: str, if_none_match: str | None) -> bool:
    """Compare weakly, as ``If-None-Match`` wants it."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags


def retry_after(eta_seconds: float | None) -> int:
    """Return after how many seconds to ask again: 2 to 60, growing with what is left."""
    return max(2, min(60, round((eta_seconds or 0) / 4)))
