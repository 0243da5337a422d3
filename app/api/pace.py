"""How slowly a body may arrive before it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ..store.errors import ServiceError
from ..store.session import settings

SLOWEST = 1024
"""Bytes per second."""


class TooSlow(ServiceError):
    """The body arrived too slowly."""

    status = 408
    default_code = "upload_too_slow"


@asynccontextmanager
async def paced() -> AsyncIterator[Callable[[int], None]]:
    """Give up what is inside once it is too slow; it says how many bytes came, each time."""
    seconds = settings().upload_slow_seconds
    loop = asyncio.get_running_loop()
    arrived = 0
    try:
        async with asyncio.timeout(seconds) as limit:

            def took(count: int) -> None:
                nonlocal arrived
                arrived += count
                if arrived >= seconds * SLOWEST:
                    arrived = 0
                    limit.reschedule(loop.time() + seconds)

            yield took
    except TimeoutError:
        if not limit.expired():
            raise
        detail = f"A body must bring {SLOWEST} bytes per second over {seconds:g} seconds."
        raise TooSlow(detail=detail, headers={"Connection": "close"}) from None
