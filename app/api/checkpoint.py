"""A blob over HTTP: whole, one range of it, or its headers alone."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..store.errors import Unavailable
from .problems import RangeNotSatisfiable
from .waiting import matches

CHUNK_BYTES = 2**18


class Slice(Response):
    """Streams part of an open file, and closes it."""

    def __init__(
        self, file: BinaryIO, start: int, length: int, *, status_code: int, headers: dict[str, str]
    ) -> None:
        self.status_code = status_code
        self.background = None
        self.init_headers({**headers, "content-length": str(length)})
        self._file = file
        self._start = start
        self._length = length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send headers and, except for HEAD, bytes."""
        with self._file as file:
            start = {"type": "http.response.start", "status": self.status_code}
            await send({**start, "headers": self.raw_headers})
            left = 0 if scope["method"] == "HEAD" else self._length
            file.seek(self._start)
            while left and not await Request(scope, receive).is_disconnected():
                chunk = await run_in_threadpool(file.read, min(CHUNK_BYTES, left))
                if not chunk:
                    raise OSError("the file is shorter than its row says")
                left -= len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def serve(http_request: Request, path: Path, *, digest: str, name: str) -> Response:
    """Answer a GET or HEAD of an immutable file with SHA-256 ``digest`` (hex)."""
    etag = f'"{digest}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:",
        "Content-Disposition": f'attachment; filename="{name}"',
        "Content-Type": "application/octet-stream",
        "Cache-Control": "private, no-store",
    }
    if matches(etag, http_request.headers.get("if-none-match")):
        return Response(status_code=304, headers=headers)
    try:
        size = path.stat().st_size
        span = _span(http_request, etag, size)
        file = path.open("rb")
    except FileNotFoundError:
        detail = "The bytes are not in the storage now."
        raise Unavailable("storage_unavailable", detail, headers={"Retry-After": "5"}) from None
    if span is None:
        return Slice(file, 0, size, status_code=200, headers=headers)
    start, end = span
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return Slice(file, start, end - start, status_code=206, headers=headers)


def _span(http_request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """Return the one range asked for as start and end, or None for the whole file."""
    asked = http_request.headers.get("range")
    if asked is None or http_request.method == "HEAD":
        return None
    if http_request.headers.get("if-range", etag) != etag:
        return None
    match = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", asked)
    first, last = match.groups() if match else ("", "")
    if first:
        start, end = int(first), min(int(last) + 1 if last else size, size)
    else:
        start, end = max(size - int(last or 0), 0), size
    if not (first or last) or start >= end:
        raise RangeNotSatisfiable(
            detail="Ask for one range of bytes inside the file.",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end
