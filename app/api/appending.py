"""The next bytes of an upload: hashed on their way to disk, and safe there before they count."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import BinaryIO

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from ..store import partial, tables, uploads
from ..store.errors import Conflict, Gone, ServiceError, TooLarge
from ..store.session import reading, transaction
from .lanes import HASHING, in_lane
from .pace import paced
from .problems import InsufficientStorage
from .sink import CHUNK_BYTES, Digest, Sink
from .strict_json import refuse_announced

CHECKPOINT_BYTES = 64 * 2**20
CHECKPOINT_SECONDS = 10.0
"""After so many bytes or seconds what came is made safe, and written down."""
MOST_DIGESTS = 1000

_digests: OrderedDict[str, tuple[int, Digest]] = OrderedDict()
"""Upload -> bytes hashed so far and their running SHA-256, as left by the last writer here."""
_lock = Lock()


class ChecksumMismatch(ServiceError):
    """The bytes of this piece are not those announced; they were thrown away."""

    status = 460
    default_code = "checksum_mismatch"


@dataclass(frozen=True)
class Checksum:
    """What the bytes of one piece must hash to."""

    algorithm: str
    digest: bytes


async def append(
    http_request: Request, tenant_id: str, upload_id: str, offset: int, checksum: Checksum | None
) -> tables.Upload:
    """Add the body of a call to an upload, and return the upload as it then is.

    Without a checksum every byte that came is kept, however the body ends. With one the piece
    counts as a whole or not at all.

    Raises:
        NotFound, Gone: if there is no such upload, or none any more.
        Conflict: ``upload_locked`` or ``upload_offset_conflict``.
        TooLarge: ``upload_exceeds_declared_size``.
        TooSlow, ChecksumMismatch: as they say.
        Unacceptable: ``checksum_mismatch`` if the upload is complete, and not what was announced.
        InsufficientStorage: the upload is failed then, and its bytes are gone.
        Unavailable: ``upload_elsewhere``; nothing is lost where the bytes are.
    """
    await run_in_threadpool(_read, tenant_id, upload_id, offset)
    with await run_in_threadpool(partial.open_locked, tenant_id, upload_id, offset) as file:
        # Read again: it may have changed before the lock was ours.
        upload = await run_in_threadpool(_read, tenant_id, upload_id, offset)
        _check_announced(http_request, upload)
        if upload.digest is not None:
            return upload
        try:
            with _storage_errors():
                upload = await _Piece(upload, file, checksum).receive(http_request)
        except _Spoilt as error:
            await run_in_threadpool(_give_up, upload, error)
            raise error.refusal from None
    if upload.status == "failed":
        partial.remove(tenant_id, upload_id)
        raise uploads.failed(upload)
    return upload


class _Spoilt(Exception):
    """The upload cannot go on."""

    def __init__(self, refusal: ServiceError) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


class _Piece:
    """The bytes of one call on their way to the end of an upload."""

    def __init__(self, upload: tables.Upload, file: BinaryIO, checksum: Checksum | None) -> None:
        self._upload = upload
        self._file = file
        self._start = upload.received_bytes
        self._checksum = checksum
        self._checkpoint: asyncio.Future[None] | None = None
        self._checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS

    async def receive(self, http_request: Request) -> tables.Upload:
        """Take the body; return the upload with what of it counts."""
        if self._start and _hashed(self._upload) is None:
            self._running = await in_lane(HASHING, _resume, self._upload, self._file)
        else:
            self._running = await asyncio.to_thread(_resume, self._upload, self._file)
        digests: tuple[Digest, ...] = (self._running,)
        if self._checksum is not None:
            piece = hashlib.new(self._checksum.algorithm, usedforsecurity=False)
            digests = (self._running, piece)
        left = self._upload.size_bytes - self._start
        path = partial.path(self._upload.tenant_id, self._upload.id)
        sink = Sink(path, left, file=self._file, digests=digests)
        try:
            try:
                await self._pour(http_request, sink)
            finally:
                await sink.flush()
                if self._checkpoint is not None:
                    await self._checkpoint
                if self._checksum is None:
                    await self._keep(sink)
            if self._checksum is not None:
                if not hmac.compare_digest(digests[1].digest(), self._checksum.digest):
                    raise ChecksumMismatch(detail="The bytes of this piece have another checksum.")
                await self._keep(sink)
        finally:
            # Nothing may write once the file is closed and its lock is gone.
            waiting = [each for each in (sink.storing, self._checkpoint) if each is not None]
            await asyncio.gather(*waiting, return_exceptions=True)
        return self._upload

    async def _pour(self, http_request: Request, sink: Sink) -> None:
        async with paced() as took:
            async for chunk in http_request.stream():
                took(len(chunk))
                try:
                    sink.feed(chunk)
                except TooLarge:
                    raise _exceeds(self._upload) from None
                await sink.drain()
                await self._advance(sink)

    async def _advance(self, sink: Sink) -> None:
        """Make what is stored safe now and then, beside the writing."""
        if self._checksum is not None or (self._checkpoint and not self._checkpoint.done()):
            return
        due = time.monotonic() >= self._checkpoint_at
        if due or self._start + sink.stored - self._upload.received_bytes >= CHECKPOINT_BYTES:
            if self._checkpoint is not None:
                await self._checkpoint  # raises what went wrong
            self._checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS
            # Not run_in_executor: it would leave behind on whose behalf this is.
            written = asyncio.to_thread(self._write_down, sink.stored)
            self._checkpoint = asyncio.create_task(written)

    async def _keep(self, sink: Sink) -> None:
        await asyncio.to_thread(self._write_down, sink.stored)
        _remember(self._upload, self._running)

    def _write_down(self, stored: int) -> None:
        if self._upload.digest is not None:
            return  # the last checkpoint was the end already
        os.fsync(self._file.fileno())
        before, end = self._upload.received_bytes, self._start + stored
        digest = self._running.hexdigest() if end == self._upload.size_bytes else None
        with transaction() as session:
            self._upload = uploads.advance(
                session,
                self._upload.tenant_id,
                self._upload.id,
                start=before,
                end=end,
                digest=digest,
            )


def _read(tenant_id: str, upload_id: str, offset: int) -> tables.Upload:
    with reading() as session:
        upload = uploads.get_open(session, tenant_id, upload_id)
    if upload.received_bytes != offset:
        raise Conflict(
            "upload_offset_conflict",
            f"The next byte is number {upload.received_bytes}.",
            headers={"Upload-Offset": str(upload.received_bytes)},
        )
    return upload


def _check_announced(http_request: Request, upload: tables.Upload) -> None:
    try:
        refuse_announced(http_request, upload.size_bytes - upload.received_bytes)
    except TooLarge:
        raise _exceeds(upload) from None


def _exceeds(upload: tables.Upload) -> TooLarge:
    return TooLarge(
        "upload_exceeds_declared_size", f"The upload was announced as {upload.size_bytes} bytes."
    )


@contextmanager
def _storage_errors() -> Iterator[None]:
    """Tell a disk that cannot hold the upload from other troubles."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _Spoilt(InsufficientStorage(detail="The storage is full.")) from None


def _give_up(upload: tables.Upload, error: _Spoilt) -> None:
    """Free the bytes first: the ledger may need the room."""
    partial.remove(upload.tenant_id, upload.id)
    with transaction() as session:
        refusal = error.refusal
        uploads.fail(session, upload.tenant_id, upload.id, refusal.code, refusal.detail)


def _resume(upload: tables.Upload, file: BinaryIO) -> Digest:
    """Cut off what does not count, and return the running SHA-256 of what does."""
    offset = upload.received_bytes
    size = os.fstat(file.fileno()).st_size
    if size < offset:
        raise _Spoilt(Gone("upload_lost", "Bytes that were received are not here any more."))
    if size > offset:
        file.truncate(offset)
    digest = _hashed(upload)
    if digest is None:
        digest = hashlib.sha256()
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        _remember(upload, digest)
    file.seek(offset)
    # A copy: a piece that is refused must not cost the next one all the reading again.
    return digest.copy()


def _hashed(upload: tables.Upload) -> Digest | None:
    """Return the running SHA-256 of what counts, if the last writer was here."""
    with _lock:
        hashed, digest = _digests.get(upload.id, (0, None))
    return digest if hashed == upload.received_bytes else None


def _remember(upload: tables.Upload, digest: Digest) -> None:
    with _lock:
        _digests.pop(upload.id, None)
        if upload.status == "receiving":
            _digests[upload.id] = (upload.received_bytes, digest)
        while len(_digests) > MOST_DIGESTS:
            _digests.popitem(last=False)
