"""Bytes under keys that only this service makes: in a local folder, or in an S3-compatible bucket.

A key is written once, by one upload or one attempt of a job, and begins with its tenant's id. Its
last part begins with the SHA-256 of the bytes, so that what is read can be compared with it.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from app.settings import Settings

from . import session
from .errors import Unavailable
from .failpoints import failpoint

CHUNK_BYTES = 2**18
OWNER = "owner"
"""Key of the bytes that name the database whose rows name all others; it is listed nowhere."""
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
# What came along with an upload may lie under the digest of that, followed by a suffix.
_NAMED = re.compile(r"(?:.*/)?([0-9a-f]{64})-[^/]*(?<!\.attached)")


class StorageAway(Unavailable):
    """The blob storage does not answer, or refuses us."""

    default_code = "storage_unavailable"


class BlobMissing(FileNotFoundError):
    """There are no bytes under a key; its words are the key."""


class BlobDamaged(Exception):
    """The bytes under a key are not those that were stored; its words are the key."""


class Opened(Protocol):
    """Bytes that can be read in ranges, until the end of its ``with`` block."""

    size: int
    digest: str | None
    """SHA-256 that the bytes should have, in hex; None where it is not known."""

    def __enter__(self) -> Self:
        """Return this."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the bytes."""

    def chunks(self, start: int, length: int) -> Iterator[bytes]:
        """Yield exactly ``length`` bytes from ``start``, in pieces; OSError if there are fewer."""


class Blobs(ABC):
    """What every store does, with private scratch on the local disk.

    Its errors are ``StorageAway``, ``BlobMissing`` and ``BlobDamaged``; a full disk is an
    ``OSError`` (``ENOSPC``).

    Args:
        root: the data folder; ``scratch`` is made inside.
    """

    listing_seconds: float
    """How often all keys may be listed in search of garbage."""

    def __init__(self, root: Path) -> None:
        self._scratch = root.resolve() / "scratch"
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)

    def scratch(self) -> Path:
        """Make a new private folder on a local disk; the caller removes it."""
        return Path(tempfile.mkdtemp(dir=self._scratch))

    @abstractmethod
    def adopt(self, path: Path, key: str) -> None:
        """Move a scratch file under ``key``; after the return it survives a power cut.

        Raises:
            FileExistsError: if other bytes are there.
        """

    @abstractmethod
    def fetch(self, key: str, folder: Path) -> Path:
        """Return a local file that holds the bytes of ``key``, for reading only.

        They are read once to compare them with their SHA-256, where that is known.

        Args:
            key: whose bytes.
            folder: an existing folder, for stores that have to make a copy.

        Raises:
            BlobMissing: if there are none.
            BlobDamaged: if they are not what was stored.
        """

    @abstractmethod
    def open(self, key: str) -> Opened:
        """Open the bytes of ``key``; raise ``BlobMissing`` if there are none."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the bytes, if they are there."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there are bytes under ``key``."""

    @abstractmethod
    def keys(self) -> Iterator[tuple[str, float]]:
        """Every key but ``OWNER``, with the time its bytes were last changed (since the epoch)."""

    @abstractmethod
    def check(self) -> None:
        """Raise ``StorageAway`` unless the store answers soon and would take bytes."""


class Folder(Blobs):
    """A folder of blobs, on the same disk as the scratch.

    Args:
        root: the data folder; ``blobs`` and ``scratch`` are made inside.
    """

    listing_seconds = 60.0

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root = root.resolve() / "blobs"
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, key: str) -> Path:
        """Where the bytes of ``key`` lie.

        Raises:
            ValueError: if the key could lead out of the folder.
        """
        return self.root.joinpath(*parts(key))

    def adopt(self, path: Path, key: str) -> None:
        """Move a scratch file under ``key``: fsync, then a link that never replaces anything."""
        target = self.path(key)
        _make_folders(target.parent, self.root)
        os.utime(path)  # a link is as old as its bytes, and old bytes without a row are garbage
        _sync(path)
        failpoint("blob.before_rename")
        try:
            target.hardlink_to(path)
        except FileExistsError:
            if digest(target) != digest(path):
                raise
        path.unlink()
        failpoint("blob.after_rename")
        _sync(target.parent)

    def fetch(self, key: str, folder: Path) -> Path:  # noqa: ARG002  # for stores that copy
        """Return the file itself, to be mapped into memory."""
        path = self.path(key)
        if not path.is_file():
            raise BlobMissing(key)
        if named_digest(key) not in (None, digest(path)):
            raise BlobDamaged(key)
        return path

    def open(self, key: str) -> Opened:
        """Open the file."""
        try:
            return _File(self.path(key).open("rb"), named_digest(key))
        except FileNotFoundError:
            raise BlobMissing(key) from None

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
            try:
                key = file.relative_to(self.root).as_posix()
                if key != OWNER and file.is_file():
                    yield key, file.stat().st_mtime
            except FileNotFoundError:
                continue  # removed while we looked

    def check(self) -> None:
        """Raise ``StorageAway`` unless a nameless file in the folder takes a few bytes."""
        try:
            with tempfile.TemporaryFile(dir=self.root) as probe:
                probe.write(bytes(4096))
        except OSError as error:
            raise StorageAway(detail=f"The folder of blobs: {error.strerror}.") from error


class _File:
    """An open file of a folder; it can be read to its end even if it is removed meanwhile."""

    def __init__(self, file: BinaryIO, digest: str | None) -> None:
        self._file = file
        self.digest = digest
        self.size = os.fstat(file.fileno()).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def chunks(self, start: int, length: int) -> Iterator[bytes]:
        """Read on from ``start``."""
        self._file.seek(start)
        while length:
            chunk = self._file.read(min(CHUNK_BYTES, length))
            if not chunk:
                raise OSError("the file is shorter than it was")
            length -= len(chunk)
            yield chunk


def blobs() -> Blobs:
    """Return the blobs of the settings in force."""
    return _store(session.settings())


def parts(key: str) -> list[str]:
    """Return the parts of a key.

    Raises:
        ValueError: if the key could lead out of its store.
    """
    found = key.split("/")
    if not all(_PART.fullmatch(part) for part in found):
        raise ValueError("not a blob key")
    return found


def named_digest(key: str) -> str | None:
    """Return the SHA-256 in hex that a key says its bytes have; None if it says none.

    >>> named_digest(f"ten_1/uploads/{64 * 'a'}-01K") == 64 * "a"
    True
    """
    found = _NAMED.fullmatch(key)
    return None if found is None else found[1]


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _bucket(settings: Settings) -> Blobs:
    from .bucket import Bucket  # only where one is used

    return Bucket(settings)


def _store(settings: Settings) -> Blobs:
    return _bucket(settings) if settings.blobs_url else Folder(settings.data_dir)


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
