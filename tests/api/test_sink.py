"""The file behind an upload: what is in memory, and what is on disk."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from app.api.sink import CHUNK_BYTES, Sink
from app.store.errors import TooLarge


async def poured(path: Path, pieces: int) -> tuple[str, int]:
    """Feed pieces of 64 KiB; return the digest and the most bytes that waited in memory."""
    sink, most = Sink(path, 2**30), 0
    for number in range(pieces):
        sink.feed(bytes([number % 256]) * 65_536)
        await sink.drain()
        most = max(most, len(sink._pending))
    return await sink.finish(), most


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    digest, most = asyncio.run(poured(tmp_path / "big", 640))
    assert most < CHUNK_BYTES
    content = (tmp_path / "big").read_bytes()
    assert len(content) == 640 * 65_536
    assert digest == hashlib.sha256(content).hexdigest()


def test_limit_is_exact(tmp_path: Path) -> None:
    sink = Sink(tmp_path / "file", 10)
    sink.feed(bytes(10))
    with pytest.raises(TooLarge):
        sink.feed(b"1")
    asyncio.run(sink.abandon())


def test_failure_of_the_thread_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk")

    async def run() -> None:
        sink = Sink(tmp_path / "file", 2**30)
        monkeypatch.setattr(sink, "_store", fail)
        try:
            sink.feed(bytes(CHUNK_BYTES))
            await sink.drain()
            sink.feed(bytes(CHUNK_BYTES))
            await sink.drain()
        finally:
            await sink.abandon()

    with pytest.raises(OSError, match="disk"):
        asyncio.run(run())
