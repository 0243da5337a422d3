"""The private folder of one worker process, and the removal of what dead predecessors left.

A living worker holds a file lock in its folder, so a folder whose lock is free belongs to nobody.
The kernel frees the lock however the worker ends.
"""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import IO

import structlog

from app.store.blobs import Blobs

_LOCK = "worker.lock"
_log = structlog.get_logger(__name__)


class Home:
    """A folder under the blobs' scratch for as long as this process lives."""

    def __init__(self, blobs: Blobs) -> None:
        self.path = blobs.scratch()
        draft = self.path / f".{_LOCK}"
        self._lock: IO[str] = draft.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It appears under its name only once it is locked: nobody can mistake it for a leftover.
        draft.rename(self.path / _LOCK)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path)
        self._lock.close()


def remove_leftovers(scratch: Path) -> int:
    """Remove the folders of workers that are gone; return how many."""
    removed = 0
    for lock in scratch.glob(f"*/{_LOCK}"):
        with lock.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(lock.parent)
        removed += 1
    if removed:
        _log.info("scratch_leftovers_removed", folders=removed)
    return removed
