"""The bytes of uploads that are not used yet, on the local disk; one writer at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from . import uploads
from .errors import Conflict, Unavailable
from .session import reading, settings, transaction


def path(tenant_id: str, upload_id: str) -> Path:
    """Where the bytes of an upload lie, once there are any."""
    return _root() / tenant_id / upload_id


def open_locked(tenant_id: str, upload_id: str, received_bytes: int) -> BinaryIO:
    """Open the bytes of an upload for reading and writing; closing them frees the lock.

    The lock is the operating system's: it ends with the process that holds it.

    Args:
        tenant_id: owner.
        upload_id: of an open upload.
        received_bytes: how many there should be; only without any is a file made.

    Raises:
        Conflict: ``upload_locked`` while another writer is at work.
        Unavailable: ``upload_elsewhere`` if there is no file where there should be one.
    """
    file = path(tenant_id, upload_id)
    for folder in (file.parent.parent, file.parent):
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _sync(folder.parent)
    is_new = not file.exists()
    flags = os.O_RDWR if received_bytes else os.O_RDWR | os.O_CREAT
    try:
        opened = os.fdopen(os.open(file, flags, 0o600), "r+b")
    except FileNotFoundError:
        raise _elsewhere() from None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        opened.close()
        detail = "Another call is writing to this upload."
        raise Conflict("upload_locked", detail, headers={"Retry-After": "1"}) from None
    if is_new:
        _sync(file.parent)
    return opened


def link(tenant_id: str, upload_id: str, target: Path) -> None:
    """Make ``target`` another name of the bytes of a complete upload that has any.

    Raises:
        Gone: ``upload_used`` if somebody else took them, or why else they went.
        Unavailable: ``upload_elsewhere`` if there is no file though there should be one.
    """
    try:
        target.hardlink_to(path(tenant_id, upload_id))
    except FileNotFoundError:
        with reading() as session:
            uploads.usable(session, tenant_id, upload_id)
        raise _elsewhere() from None


def remove(tenant_id: str, upload_id: str) -> None:
    """Remove the bytes, if they are there."""
    path(tenant_id, upload_id).unlink(missing_ok=True)


def free_bytes() -> int:
    """How many bytes the disk still takes."""
    root = _root()
    there = next(each for each in (root, *root.parents) if each.exists())
    return shutil.disk_usage(there).free


def sweep() -> int:
    """End idle uploads, and remove bytes that no open upload needs; return how many files."""
    # Listed before the rows are read: a file is made only for a row that is there already.
    found = [file for file in _root().glob("*/*") if file.is_file()]
    with transaction() as session:
        uploads.purge(session)
        uploads.expire(session)
    with reading() as session:
        needed = uploads.with_bytes(session)
    idle = [file for file in found if (file.parent.name, file.name) not in needed]
    for file in idle:
        file.unlink(missing_ok=True)
    return len(idle)


def _elsewhere() -> Unavailable:
    """Another process may have the file: what this disk lacks does not end an upload."""
    return Unavailable(
        "upload_elsewhere",
        "The bytes that were received are not on the disk of the process that was asked.",
        headers={"Retry-After": "5"},
    )


def _root() -> Path:
    return settings().data_dir.resolve() / "partial"


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
