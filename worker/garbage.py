"""What nothing names any more is removed; rows whose bytes are missing are told."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator

import structlog
from sqlalchemy import select

from app.store import erasing, trash
from app.store.blobs import OWNER, BlobMissing, StorageAway, blobs, parts
from app.store.errors import ServiceError
from app.store.failpoints import failpoint
from app.store.session import reading, settings, transaction
from app.store.tables import Job, Tenant

BATCH = 1000
"""Keys that are struck out together."""

NEVER = threading.Event()
"""A closing sign that is not set."""

_ATTEMPT = re.compile(r"(?P<tenant>[^/]+)/jobs/(?P<job>[^/]+)/e(?P<epoch>\d+)/")
_told: set[str] = set()
"""Files in the storage that no key of ours names, and that the log knows of."""
_log = structlog.get_logger(__name__)


def empty_trash(closing: threading.Event = NEVER) -> int:
    """Remove the bytes whose rows let go of them, until ``closing`` is set; return how many.

    What cannot be removed is told, and keeps nothing else from being removed.
    """
    with reading() as session:
        keys = trash.pending(session, limit=None)
    starts = range(0, len(keys), BATCH)
    return sum(_empty(keys[start : start + BATCH], closing) for start in starts)


def _empty(keys: list[str], closing: threading.Event) -> int:
    failpoint("garbage.before_delete")
    gone: list[str] = []
    try:
        gone.extend(_removed(keys, closing))
    finally:
        failpoint("garbage.after_delete")
        with transaction() as session:
            trash.removed(session, gone)
    return len(gone)


def _removed(keys: list[str], closing: threading.Event) -> Iterator[str]:
    """Remove what lies under these keys, and yield those under which nothing lies any more.

    Raises:
        StorageAway: if the storage does not answer at all.
    """
    for key in keys:
        if closing.is_set():
            return
        try:
            blobs().delete(key)
        except (OSError, ServiceError, ValueError) as error:
            if isinstance(error, StorageAway):
                blobs().check()  # refused for this key alone, unless nothing answers
            _log.error("trash_kept", key=key, error=type(error).__name__)
        else:
            yield key


def drop_indexes(closing: threading.Event = NEVER) -> None:
    """Remove the indexes of datasets that are gone, until ``closing`` is set."""
    while not closing.is_set():
        with transaction() as session:
            if not erasing.drop_index(session):
                return


def collect(closing: threading.Event = NEVER) -> tuple[list[str], list[str]]:
    """Compare rows and bytes: remove orphans, and log every row whose bytes are missing.

    What an attempt wrote carries its epoch, so it is an orphan as soon as the job has moved on.
    Everything else is one only after ``orphan_seconds``: a row may be about to name it.
    In a storage that belongs to another database nothing is an orphan: that one's rows name it.
    Once ``closing`` is set nothing more is removed.

    Returns:
        The keys that were removed, and those that are missing.
    """
    is_ours = _is_ours()
    with reading() as session:
        named_before = trash.named(session)
    found = _listed()
    with reading() as session:
        running = {
            (tenant, job, epoch)
            for tenant, job, epoch in session.execute(
                select(Job.tenant_id, Job.id, Job.epoch).where(Job.status == "running")
            )
        }
    # Read after the attempts: one that ended in between has named its bytes by now.
    with reading() as session:
        named = trash.named(session)
        known = named | set(trash.pending(session, limit=None))
    oldest = time.time() - settings().orphan_seconds
    orphans = [
        key
        for key, changed_at in found.items()
        if is_ours and key not in known and _is_abandoned(key, changed_at, running, oldest)
    ]
    orphans = [*_removed(orphans, closing)]
    if orphans:
        _log.info("orphans_removed", files=len(orphans))
    # Named before the listing and after it: not on its way in, not on its way out.
    missing = sorted((named_before & named) - found.keys())
    for key in missing:
        _log.error("blob_missing", key=key)
    return orphans, missing


def _is_ours() -> bool:
    """Whether the storage belongs to our database; one that belongs to none is taken."""
    with reading() as session:
        # Tenants are never removed, and a restored database has the same.
        first = select(Tenant.id).order_by(Tenant.created_at, Tenant.id).limit(1)
        name = session.scalar(first)
    if name is None:
        return False
    try:
        with blobs().open(OWNER) as opened:
            is_ours = b"".join(opened.chunks(0, opened.size)) == name.encode()
    except BlobMissing:
        is_ours = _take(name)
    if not is_ours:
        _log.error("storage_of_another", key=OWNER)
    return is_ours


def _take(name: str) -> bool:
    scratch = blobs().scratch()
    try:
        (scratch / OWNER).write_text(name)
        blobs().adopt(scratch / OWNER, OWNER)
    except FileExistsError:  # another database was faster
        return False
    finally:
        shutil.rmtree(scratch)
    return True


def _listed() -> dict[str, float]:
    """Every key that can be ours, with the time its bytes were last changed; others are told."""
    found, odd = {}, set()
    for key, changed_at in blobs().keys():  # noqa: SIM118  # no dict
        try:
            parts(key)
        except ValueError:
            odd.add(key)
        else:
            found[key] = changed_at
    if odd - _told:
        _log.warning("odd_files_left", files=len(odd))
    _told.update(odd)
    return found


def _is_abandoned(
    key: str, changed_at: float, running: set[tuple[str, str, int]], oldest: float
) -> bool:
    attempt = _ATTEMPT.match(key)
    if attempt is None:
        return changed_at < oldest
    return (attempt["tenant"], attempt["job"], int(attempt["epoch"])) not in running
