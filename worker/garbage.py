"""Bytes that no row names: what was thrown away, and what a killed attempt left behind."""

from __future__ import annotations

import re
import time

import structlog
from sqlalchemy import select

from app.store import trash
from app.store.blobs import blobs
from app.store.failpoints import failpoint
from app.store.session import reading, transaction
from app.store.tables import Job

ORPHAN_SECONDS = 24 * 3600.0
"""Age at which bytes outside an attempt's own folder count as orphans."""

_ATTEMPT = re.compile(r"(?P<tenant>[^/]+)/jobs/(?P<job>[^/]+)/e(?P<epoch>\d+)/")
_log = structlog.get_logger(__name__)


def empty_trash() -> int:
    """Remove the bytes whose rows let go of them; return how many."""
    with reading() as session:
        keys = trash.pending(session)
    if not keys:
        return 0
    failpoint("garbage.before_delete")
    for key in keys:
        blobs().delete(key)
    failpoint("garbage.after_delete")
    with transaction() as session:
        trash.removed(session, keys)
    return len(keys)


def remove_orphans() -> int:
    """Remove bytes that no row names and no living attempt is about to name; return how many.

    What an attempt wrote carries its epoch, so it is an orphan as soon as the job has moved on.
    Everything else is one only after a day: a row may be about to name it.
    """
    found = list(blobs().keys())
    with reading() as session:
        running = {
            (tenant, job, epoch)
            for tenant, job, epoch in session.execute(
                select(Job.tenant_id, Job.id, Job.epoch).where(Job.status == "running")
            )
        }
    # Read after the attempts: one that ended in between has named its bytes by now.
    with reading() as session:
        known = trash.known(session)
    oldest = time.time() - ORPHAN_SECONDS
    orphans = [
        key
        for key, changed_at in found
        if key not in known and _is_abandoned(key, changed_at, running, oldest)
    ]
    for key in orphans:
        blobs().delete(key)
    if orphans:
        _log.info("orphans_removed", files=len(orphans))
    return len(orphans)


def _is_abandoned(
    key: str, changed_at: float, running: set[tuple[str, str, int]], oldest: float
) -> bool:
    attempt = _ATTEMPT.match(key)
    if attempt is None:
        return changed_at < oldest
    return (attempt["tenant"], attempt["job"], int(attempt["epoch"])) not in running
