"""Liveness and readiness; the only routes, beside the documentation, that need no key."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Response
from pydantic import Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from ..settings import Settings
from ..store import figures, session, workers
from ..store.blobs import StorageAway, blobs
from .shapes import Shape

router = APIRouter(tags=["operations"])
BROKER_TIMEOUT_SECONDS = 0.5
SKEW_SECONDS = 5.0
DATABASE_SECONDS = 1.0
KEPT_SECONDS = 1.0
"""How long an answer is good: nobody needs a key to ask, and every look writes and dials."""
State = tuple[bool, bool, bool, int, Any]
AWAY: State = (False, False, False, 0, None)


class Alive(Shape):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(Shape):
    """Whether the service can take requests, and carry them out."""

    status: Literal["ready", "degraded", "unavailable"]
    database: bool = Field(description="It answers within a second, and takes what is written.")
    migrations: bool = Field(description="Its tables are those of this version.")
    storage: bool = Field(
        description="Blobs can be written: the folder has room, or the bucket answers."
    )
    clock: bool = Field(description="This machine and the database agree on the time.")
    broker: bool
    workers: int
    sandbox: Literal["L0", "L1", "L2"] | None = Field(
        description="How well the runners of the living workers are walled in, of the worst one; "
        "`L1`: no network, no files but their own, no signals to others; `L2`: in a container."
    )


_kept: tuple[float, Settings, Ready] | None = None
"""Until when the last answer is good, under which settings, and what it was."""
_looking = asyncio.Lock()
"""Held by the one who looks. Whoever waits for it keeps no thread from other calls."""
_asking = ThreadPoolExecutor(1, "lethe-readiness")
_asked: Future[State] | None = None
"""The question to the database that was asked last; it may hang for as long as the network does."""


@router.get("/healthz", operation_id="get_health", response_model=Alive)
async def healthz() -> Alive:
    """Say that the process is alive; touches nothing else."""
    return Alive()


@router.get(
    "/readyz",
    operation_id="get_readiness",
    response_model=Ready,
    responses={
        503: {
            "model": Ready,
            "description": "The database is away or not migrated.",
        }
    },
)
async def readyz(http_response: Response) -> Ready:
    """Say whether requests can be taken, and whether they can be carried out.

    The first needs database and migrations. Without storage, broker or workers, or with a clock
    that is wrong, the service is `degraded`, not unavailable: requests are kept, and done later.
    Uploads and downloads need the storage.
    """
    found = await _lately()
    if found.status == "unavailable":
        http_response.status_code = 503
    return found


async def _lately() -> Ready:
    """What was found within the last second, or is found now: by one caller, for all that wait."""
    global _kept
    async with _looking:
        settings = session.settings()
        if _kept is None or _kept[1] is not settings or time.monotonic() >= _kept[0]:
            found = await run_in_threadpool(_look)
            _kept = (time.monotonic() + KEPT_SECONDS, settings, found)
        return _kept[2]


def _look() -> Ready:
    database, migrations, clock, live, sandbox = _in_time()
    storage = _storage()
    broker = broker_answers(session.settings().broker_url)
    status: Literal["ready", "degraded", "unavailable"]
    if not (database and migrations):
        status = "unavailable"
    else:
        status = "ready" if storage and clock and broker and live else "degraded"
    return Ready(
        status=status,
        database=database,
        migrations=migrations,
        storage=storage,
        clock=clock,
        broker=broker,
        workers=live,
        sandbox=sandbox,
    )


def _in_time() -> State:
    """What the database says within a second; while it hangs, it is not asked again."""
    global _asked
    if _asked is None or _asked.done():
        _asked = _asking.submit(_database)
    try:
        return _asked.result(DATABASE_SECONDS)
    except TimeoutError:
        # Not hidden: the answer is 503 and says which part is missing.
        return AWAY


def _database() -> State:
    """Whether the database answers, is migrated, has our time; workers alive, and how walled in."""
    try:
        if not session.at_head():
            return True, False, False, 0, None
        session.try_writing()
        with session.reading() as reader:
            agreed = abs(figures.skew(reader)) < SKEW_SECONDS
            live = workers.live(reader)
            levels = [worker.sandbox for worker in live if worker.sandbox is not None]
            return True, True, agreed, len(live), min(levels, default=None)
    except SQLAlchemyError:
        # Not hidden: the answer is 503 and says which part is missing.
        return AWAY


def _storage() -> bool:
    """Return whether blobs can be written to a folder, or a bucket be listed."""
    try:
        blobs().check()
    except (StorageAway, OSError):
        # Not hidden: the answer says which part is missing.
        return False
    return True


def _says_something(connection: socket.socket) -> bool:
    connection.sendall(b"PING\r\n")
    return bool(connection.recv(1))


def _unchecked_tls() -> ssl.SSLContext:
    """For a question without secrets; whom to trust is up to those who send any."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def broker_answers(url: str) -> bool:
    """Return whether the broker says anything, within half a second."""
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return True
    address = (parts.hostname or "127.0.0.1", parts.port or 6379)
    try:
        with socket.create_connection(address, timeout=BROKER_TIMEOUT_SECONDS) as connection:
            if parts.scheme == "redis":
                return _says_something(connection)
            if parts.scheme == "rediss":
                with _unchecked_tls().wrap_socket(connection) as wrapped:
                    return _says_something(wrapped)
            return True
    except OSError:
        return False
