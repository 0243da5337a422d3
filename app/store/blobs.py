"""Bytes on the local disk, under keys that only this service makes."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import session
from .failpoints import failpoint

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


class Blobs:
    """A folder of blobs and a folder of scratch on the same disk.

    Args:
        root: the data folder; ``blobs`` and ``scratch`` are made inside.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve() / "blobs"
        self._scratch = root.resolve() / "scratch"
        for folder in (self.root, self._scratch):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, key: str) -> Path:
        """Where the bytes of ``key`` lie.

        Raises:
            ValueError: if the key could lead out of the folder.
        """
        parts = key.split("/")
        if not all(_PART.fullmatch(part) for part in parts):
            raise ValueError("not a blob key")
        return self.root.joinpath(*parts)

    def adopt(self, path: Path, key: str) -> None:
        """Move a scratch file under ``key``; after the return it survives a power cut."""
        target = self.path(key)
        _make_folders(target.parent, self.root)
        _sync(path)
        failpoint("blob.before_rename")
        path.replace(target)
        failpoint("blob.after_rename")
        _sync(target.parent)

    def delete(self, key: str) -> None:
        """Remove the bytes, if they are there.

        Folders stay: another writer may be about to use one.
        """
        self.path(key).unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        """Whether there are bytes under ``key``."""
        return self.path(key).is_file()

    def keys(self) -> Iterator[tuple[str, float]]:
        """Every key with the time its bytes were last changed, in seconds since the epoch."""
        for file in self.root.rglob("*"):
            if file.is_file():
                yield file.relative_to(self.root).as_posix(), file.stat().st_mtime

    def scratch(self) -> Path:
        """Make a new private folder on the disk of the blobs; the caller removes it."""
        return Path(tempfile.mkdtemp(dir=self._scratch))


def blobs() -> Blobs:
    """Return the blobs of the data folder in force."""
    return Blobs(session.settings().data_dir)


def _make_folders(folder: Path, root: Path) -> None:
    """Make ``folder`` below ``root`` and make the new entries durable."""
    missing = [each for each in (folder, *folder.parents) if each != root and not each.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for each in missing:
        _sync(each.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
