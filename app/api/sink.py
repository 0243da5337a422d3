"""A file written by a worker thread while it is hashed, from chunks of a request."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import BinaryIO, Protocol

from ..store.errors import TooLarge

CHUNK_BYTES = 2**20


class Digest(Protocol):
    """A running hash of ``hashlib``."""

    def update(self, data: bytes | bytearray, /) -> None:
        """Take more bytes."""

    def digest(self) -> bytes:
        """Return the hash of what came so far."""

    def hexdigest(self) -> str:
        """Return it in hex."""

    def copy(self) -> Digest:
        """Return another that goes on from here."""


class Sink:
    """Takes bytes in the event loop and stores them in a thread; holds at most two chunks.

    Args:
        path: the file to make.
        limit: most bytes accepted.
        file: takes the bytes where it stands, instead of a new file at ``path``.
        digests: take the bytes, too; by default one SHA-256.
    """

    def __init__(
        self,
        path: Path,
        limit: int,
        *,
        file: BinaryIO | None = None,
        digests: tuple[Digest, ...] | None = None,
    ) -> None:
        self.path = path
        self.size = 0
        self.stored = 0
        """Bytes that the operating system has."""
        self._limit = limit
        self._digests = digests or (hashlib.sha256(),)
        self._file = file or path.open("xb")
        self._pending = bytearray()
        self.storing: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes; raise TooLarge past the limit."""
        if self.size + len(data) > self._limit:
            raise TooLarge(detail=f"The file is limited to {self._limit} bytes.")
        self.size += len(data)
        self._pending += data

    async def drain(self) -> None:
        """Hand a full chunk to the thread, once the chunk before is stored."""
        if len(self._pending) >= CHUNK_BYTES:
            await self._settle()
            self._hand_over()

    async def flush(self) -> None:
        """Store everything that was taken."""
        await self._settle()
        if self._pending:
            self._hand_over()
            await self._settle()

    async def finish(self) -> str:
        """Store the rest, close the file and return the SHA-256 in hex."""
        await self.flush()
        self._file.close()
        return self._digests[0].hexdigest()

    async def abandon(self) -> None:
        """Stop writing, whatever state the file is in."""
        if self.storing is not None:
            # Its own failure no longer matters: the file is thrown away.
            await asyncio.gather(self.storing, return_exceptions=True)
        self._file.close()

    def _hand_over(self) -> None:
        chunk, self._pending = self._pending, bytearray()
        loop = asyncio.get_running_loop()
        self.storing = loop.run_in_executor(None, self._store, chunk)

    def _store(self, chunk: bytearray) -> None:
        for digest in self._digests:
            digest.update(chunk)
        self._file.write(chunk)
        self._file.flush()
        self.stored += len(chunk)

    async def _settle(self) -> None:
        if self.storing is not None:
            # Shielded: a caller that is given up must still find what is being written.
            await asyncio.shield(self.storing)
            self.storing = None
