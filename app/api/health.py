"""Liveness and readiness; the only routes, beside the documentation, that need no key."""

from __future__ import annotations

import socket
from typing import Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from ..store import session, workers
from ..store.blobs import StorageAway, blobs
from .shapes import Shape

router = APIRouter(tags=["operations"])
BROKER_TIMEOUT_SECONDS = 0.5


class Alive(Shape):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(Shape):
    """Whether the service can take requests, and carry them out."""

    status: Literal["ready", "degraded", "unavailable"]
    database: bool
    migrations: bool
    storage: bool
    broker: bool
    workers: int


@router.get("/healthz", operation_id="get_health", response_model=Alive)
async def healthz() -> Alive:
    """Say that the process is alive; touches nothing else."""
    return Alive()


@router.get(
    "/readyz",
    operation_id="get_readiness",
    response_model=Ready,
    responses={503: {"model": Ready, "description": "The database is away or not migrated."}},
)
def readyz(http_response: Response) -> Ready:
    """Say whether requests can be taken, and whether they can be carried out.

    The first needs database and migrations. Without storage, broker or workers the service is
    `degraded`, not unavailable: requests are kept, and done later.
    Uploads and downloads need the storage.
    """
    database, migrations, live = _database()
    storage = _storage()
    broker = _broker(session.settings().broker_url)
    if not (database and migrations):
        http_response.status_code = 503
        status: Literal["ready", "degraded", "unavailable"] = "unavailable"
    else:
        status = "ready" if storage and broker and live else "degraded"
    return Ready(
        status=status,
        database=database,
        migrations=migrations,
        storage=storage,
        broker=broker,
        workers=live,
    )


def _database() -> tuple[bool, bool, int]:
    """Return whether the database answers, whether it is migrated, and how many workers live."""
    try:
        session.ping()
        if not session.at_head():
            return True, False, 0
        with session.reading() as reader:
            return True, True, len(workers.live(reader))
    except SQLAlchemyError:
        # Not hidden: the answer is 503 and says which part is missing.
        return False, False, 0


def _storage() -> bool:
    """Return whether blobs can be written to a folder, or a bucket be listed."""
    try:
        blobs().check()
    except (StorageAway, OSError):
        # Not hidden: the answer says which part is missing.
        return False
    return True


def _broker(url: str) -> bool:
    """Return whether the broker says anything, within half a second."""
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return True
    address = (parts.hostname or "127.0.0.1", parts.port or 6379)
    try:
        with socket.create_connection(address, timeout=BROKER_TIMEOUT_SECONDS) as connection:
            if parts.scheme == "redis":
                connection.sendall(b"PING\r\n")
                return bool(connection.recv(1))
            return True
    except OSError:
        return False
