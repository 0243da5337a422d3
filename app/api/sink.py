"""A file written by a worker thread while it is hashed, from chunks of a request."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from ..store.errors import TooLarge

CHUNK_BYTES = 2**20


class Sink:
    """Takes bytes in the event loop and stores them in a thread; holds at most two chunks.

    Args:
        path: the file to make.
        limit: most bytes accepted.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.size = 0
        self._limit = limit
        self._hash = hashlib.sha256()
        self._file = path.open("xb")
        self._pending = bytearray()
        self._storing: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes; raise TooLarge past the limit."""
        self.size += len(data)
        if self.size > self._limit:
            raise TooLarge(detail=f"The file is limited to {self._limit} bytes.")
        self._pending += data

    async def drain(self) -> None:
        """Hand a full chunk to the thread, once the chunk before is stored."""
        if len(self._pending) >= CHUNK_BYTES:
            await self._settle()
            chunk, self._pending = self._pending, bytearray()
            loop = asyncio.get_running_loop()
            self._storing = loop.run_in_executor(None, self._store, chunk)

    async def finish(self) -> str:
        """Store the rest and return the SHA-256 in hex."""
        await self._settle()
        await asyncio.to_thread(self._store, self._pending)
        self._file.close()
        return self._hash.hexdigest()

    async def abandon(self) -> None:
        """Stop writing, whatever state the file is in."""
        if self._storing is not None:
            # Its own failure no longer matters: the file is thrown away.
            await asyncio.gather(self._storing, return_exceptions=True)
        self._file.close()

    def _store(self, chunk: bytearray) -> None:
        self._hash.update(chunk)
        self._file.write(chunk)

    async def _settle(self) -> None:
        if self._storing is not None:
            storing, self._storing = self._storing, None
            await storing
