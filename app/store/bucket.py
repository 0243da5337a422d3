"""Blobs in an S3-compatible bucket.

What comes back from the network is compared with the SHA-256 that was stored beside it. Parts of
uploads that were cut off stay invisible in the bucket: a lifecycle rule removes them
(``docs/deploy/s3/lifecycle.json``).
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from app.settings import Settings

from .blobs import OWNER, BlobDamaged, BlobMissing, Blobs, Opened, StorageAway, digest, parts

PART_BYTES = 8 * 2**20
"""Size of one part of an upload, and of one read; larger files go up in parts."""
PARTS_AT_ONCE = 4
_DIGEST = "sha256"
"""Name of the metadata field that holds the SHA-256 in hex."""
_FULL = ("InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "507 ")
_log = structlog.get_logger(__name__)


class Bucket(Blobs):
    """A bucket, or what lies in it under a prefix.

    Args:
        settings: ``blobs_url`` and what belongs to it.
    """

    listing_seconds = 900.0

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.data_dir)
        self._store = _connect(settings, retries=4, seconds=60)
        self._impatient = _connect(settings, retries=0, seconds=2)

    def adopt(self, path: Path, key: str) -> None:
        """Send a scratch file up under ``key``, then remove it."""
        name = _name(key)
        found = digest(path)
        options: dict[str, Any] = {"attributes": {_DIGEST: found}}
        if path.stat().st_size <= PART_BYTES:
            options["mode"] = "create"
        else:
            # Parts know no condition; nobody else writes a key that carries a ULID or an epoch.
            options |= {"chunk_size": PART_BYTES, "max_concurrency": PARTS_AT_ONCE}
        with _errors():
            try:
                if "mode" not in options and self.exists(key):
                    raise AlreadyExistsError(key)
                obstore.put(self._store, name, path, **options)
            except AlreadyExistsError:
                # Ours, if an answer was lost and the call was made again.
                if self._head(name)[1] != found:
                    raise FileExistsError(key) from None
        path.unlink()

    def fetch(self, key: str, folder: Path) -> Path:
        """Copy the bytes into ``folder``, and compare them with their digest."""
        target = folder / "~".join(parts(key))
        if target.exists():
            return target
        draft = target.with_name(f".{target.name}")
        hasher = hashlib.sha256()
        with self._open(key) as opened, draft.open("wb") as file:
            for chunk in opened.chunks(0, opened.size):
                hasher.update(chunk)
                file.write(chunk)
        if opened.digest not in (None, hasher.hexdigest()):
            draft.unlink()
            raise BlobDamaged(key)
        return draft.rename(target)

    def open(self, key: str) -> Opened:
        """Look the object up; its bytes are read as they are asked for."""
        return self._open(key)

    def delete(self, key: str) -> None:
        """Remove the object, if it is there."""
        with _errors():
            obstore.delete(self._store, _name(key))

    def exists(self, key: str) -> bool:
        """Whether there is an object under ``key``."""
        try:
            with _errors(key):
                obstore.head(self._store, _name(key))
        except BlobMissing:
            return False
        return True

    def keys(self) -> Iterator[tuple[str, float]]:
        """Every key with the time its bytes were last changed, in seconds since the epoch."""
        with _errors():
            for page in obstore.list(self._store):
                for found in page:
                    if found["path"] == OWNER:
                        continue
                    yield found["path"], found["last_modified"].timestamp()

    def check(self) -> None:
        """Raise ``StorageAway`` unless the bucket can be listed within two seconds."""
        with _errors():
            next(iter(obstore.list(self._impatient, chunk_size=1)), None)

    def _open(self, key: str) -> _Object:
        name = _name(key)
        try:
            with _errors(key):
                size, found = self._head(name)
        except BlobMissing:
            self.check()  # where the whole bucket is missing, nothing is known of its bytes
            raise
        return _Object(self._store, name, size, found)

    def _head(self, name: str) -> tuple[int, str | None]:
        answer = obstore.get(self._store, name, options={"head": True})
        return answer.meta["size"], answer.attributes.get(_DIGEST)


class _Object:
    """An object of a bucket, read in calls of ``PART_BYTES`` each, so that none takes long."""

    def __init__(self, store: S3Store, name: str, size: int, found: str | None) -> None:
        self.size = size
        self.digest = found
        self._store = store
        self._name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def chunks(self, start: int, length: int) -> Iterator[bytes]:
        """Ask for one range after the other."""
        end = start + length
        while start < end:
            with _errors(self._name):
                chunk = obstore.get_range(
                    self._store, self._name, start=start, end=min(start + PART_BYTES, end)
                ).to_bytes()
            if not chunk:
                raise OSError("the object is shorter than it was")
            start += len(chunk)
            yield chunk


def _connect(settings: Settings, *, retries: int, seconds: int) -> S3Store:
    url = urlsplit(settings.blobs_url)
    config: dict[str, Any] = {"region": settings.blobs_region}
    if settings.blobs_endpoint:
        config["endpoint"] = settings.blobs_endpoint
    if settings.blobs_secret_key:
        config["access_key_id"] = settings.blobs_access_key
        config["secret_access_key"] = settings.blobs_secret_key.get_secret_value()
    return S3Store(
        url.netloc,
        prefix=url.path.strip("/") or None,
        **config,
        client_options={
            "allow_http": settings.blobs_endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=min(seconds, 5)),
            "timeout": timedelta(seconds=seconds),
        },
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=seconds)},
    )


def _name(key: str) -> str:
    return "/".join(parts(key))


@contextmanager
def _errors(key: str = "") -> Iterator[None]:
    """Let errors of the library out as those of ``Blobs``.

    Args:
        key: of the bytes that are asked for, if any are.
    """
    try:
        yield
    except FileNotFoundError as error:
        if key:
            raise BlobMissing(key) from None
        raise StorageAway(detail="The bucket is not there.") from error
    except BaseError as error:
        text = str(error)
        if any(sign in text for sign in _FULL):
            raise OSError(errno.ENOSPC, "the blob storage is full") from error
        _log.error("storage_away", cause=text.partition("\n")[0])
        raise StorageAway(
            detail="The blob storage does not answer, or refuses this service.",
            headers={"Retry-After": "5"},
        ) from error
