"""A blob over HTTP: whole, one range of it, or its headers alone."""

from __future__ import annotations

import base64
import re

import structlog
from fastapi import Request
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..store.blobs import BlobMissing, Opened, StorageAway, blobs
from .problems import RangeNotSatisfiable
from .waiting import matches

log = structlog.get_logger("lethe.api")


class Slice(Response):
    """Streams part of an open blob, and closes it."""

    def __init__(
        self, blob: Opened, start: int, length: int, *, status_code: int, headers: dict[str, str]
    ) -> None:
        self.status_code = status_code
        self.background = None
        self.init_headers({**headers, "content-length": str(length)})
        self._blob = blob
        self._start = start
        self._length = length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send headers and, except for HEAD, bytes."""
        with self._blob as blob:
            start = {"type": "http.response.start", "status": self.status_code}
            await send({**start, "headers": self.raw_headers})
            length = 0 if scope["method"] == "HEAD" else self._length
            async for chunk in iterate_in_threadpool(blob.chunks(self._start, length)):
                if await Request(scope, receive).is_disconnected():
                    break
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def serve(http_request: Request, key: str, *, digest: str, name: str) -> Response:
    """Answer a GET or HEAD of an immutable blob with SHA-256 ``digest`` (hex).

    The bytes are not compared with it before they go out; ``Repr-Digest`` is for whoever gets them.
    """
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
        blob = blobs().open(key)
    except BlobMissing:
        log.error("blob_missing", key=key)
        detail = "The bytes are not in the storage now."
        raise StorageAway(detail=detail, headers={"Retry-After": "5"}) from None
    try:
        span = _span(http_request, etag, blob.size)
    except RangeNotSatisfiable:
        with blob:
            raise
    if span is None:
        return Slice(blob, 0, blob.size, status_code=200, headers=headers)
    start, end = span
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size}"
    return Slice(blob, start, end - start, status_code=206, headers=headers)


def _span(http_request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """Return the one range asked for as start and end, or None for the whole file."""
    asked = http_request.headers.get("range")
    if asked is None or http_request.method == "HEAD":
        return None
    if http_request.headers.get("if-range", etag) != etag:
        return None
    unit, _, ranges = asked.partition("=")
    if unit.strip().lower() != "bytes":
        return None  # RFC 9110, 14.2: a unit that is not known is ignored
    match = re.fullmatch(r"\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", ranges)
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
