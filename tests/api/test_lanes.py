"""What takes long keeps no upload waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.api import appending, sources
from app.api.lanes import IMPORTS, in_lane
from app.api.sink import CHUNK_BYTES, Sink
from app.store.tables import Upload

MANY = 40
"""More than asyncio has threads for everybody, on any machine."""


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opens at the end, so that no thread is left waiting."""
    opened = threading.Event()
    yield opened
    opened.set()


async def bring(_: int) -> None:
    source = sources.UrlSource(type="url", url="file:///f")
    caller = cast("Any", SimpleNamespace(tenant_id="t"))
    await sources._fetch(source, caller, 1, Path("f"))


async def merge(_: int) -> None:
    index = sources.ShardIndex(weight_map={"w": "f"})
    source = sources.ShardsSource.model_construct(index=index, files={})
    await sources._merged(source, cast("Any", None), 1, Path("f"))


async def resume(number: int) -> None:
    upload = Upload(tenant_id="t", id=f"upl_{number}", received_bytes=1, size_bytes=1)
    piece = appending._Piece(upload, cast("Any", None), None)
    await piece.receive(cast("Any", None))


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("app.api.imports.bring", bring),
        ("core.shards.merge", merge),
        ("app.api.appending._resume", resume),
    ],
)
def test_slow_work_keeps_no_upload_waiting(
    name: str,
    start: Callable[[int], Awaitable[None]],
    gate: threading.Event,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began = threading.Event()

    def hang(*_: object, **__: object) -> None:
        began.set()
        gate.wait(60.0)
        raise RuntimeError("too late")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(CHUNK_BYTES)

    async def upload() -> str:
        slow = [asyncio.ensure_future(start(number)) for number in range(MANY)]
        while not began.is_set():
            await asyncio.sleep(0.01)
        sink = Sink(tmp_path / "upload", 3 * CHUNK_BYTES)
        try:
            async with asyncio.timeout(20.0):
                async for chunk in chunks():
                    sink.feed(chunk)
                    await sink.drain()
                return await sink.finish()
        finally:
            gate.set()
            await asyncio.gather(*slow, return_exceptions=True)

    monkeypatch.setattr(name, hang)
    assert asyncio.run(upload())
    assert (tmp_path / "upload").stat().st_size == 3 * CHUNK_BYTES


def test_a_lane_knows_on_whose_behalf_it_works() -> None:
    caller = ContextVar("caller", default="nobody")

    async def ask() -> str:
        caller.set("somebody")
        return await in_lane(IMPORTS, caller.get)

    assert asyncio.run(ask()) == "somebody"
