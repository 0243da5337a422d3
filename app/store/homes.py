"""Private folders on the local disk, and the removal of those whose process is gone.

A living process holds a file lock in its folder, so a folder whose lock is free belongs to nobody.
The kernel frees the lock however the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from pathlib import Path
from typing import IO

import structlog

from .blobs import Blobs

_LOCK = "home.lock"
_log = structlog.get_logger(__name__)


class Home:
    """A folder under the blobs' scratch, until it is closed or this process ends.

    Args:
        blobs: the store that its files may be adopted by.
    """

    def __init__(self, blobs: Blobs) -> None:
        self.path = blobs.scratch()
        draft = self.path / f".{_LOCK}"
        self._lock: IO[str] = draft.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It appears under its name only once it is locked: nobody can mistake it for a leftover.
        draft.rename(self.path / _LOCK)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder."""
        _remove(self.path)
        self._lock.close()


def remove_leftovers(data_dir: Path) -> int:
    """Remove the folders of processes that are gone; return how many.

    Args:
        data_dir: the data folder, whose scratch they lie in.
    """
    removed = 0
    for lock in (data_dir / "scratch").glob(f"*/{_LOCK}"):
        # Held: its process lives. Not there any more: another process was faster, or its owner.
        with contextlib.suppress(BlockingIOError, FileNotFoundError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                _remove(lock.parent)
            except OSError as error:
                _log.warning("scratch_leftover_kept", error=type(error).__name__)
                continue
            removed += 1
    if removed:
        _log.info("scratch_leftovers_removed", folders=removed)
    return removed


def _remove(folder: Path) -> None:
    """Remove a folder, its lock last: what a cut leaves of it is found again."""
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        elif each.name != _LOCK:
            each.unlink()
    shutil.rmtree(folder)
