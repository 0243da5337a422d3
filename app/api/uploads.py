"""A model or dataset file on its way in: streamed to scratch while hashing, in constant memory."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request

from ..store.blobs import blobs
from ..store.errors import BadRequest, ServiceError, TooLarge, Unacceptable, Unsupported
from ..store.homes import Home
from .multipart import Parts
from .pace import paced
from .sink import Sink
from .strict_json import MAX_BYTES, check_encoding, refuse_announced

DIGEST_HEADERS = ("repr-digest", "content-digest")
MULTIPART_MARGIN = MAX_BYTES + 64 * 1024
"""What a multipart body may hold beside its file: metadata, boundaries and part headers."""


class LengthRequired(ServiceError):
    """A whole file needs a ``Content-Length``."""

    status = 411
    default_code = "length_required"


@dataclass(frozen=True)
class Attachment:
    """A complete file in scratch that came along with another."""

    path: Path
    digest: str
    """SHA-256 in hex."""


@dataclass(frozen=True)
class Upload:
    """A complete file in scratch, with the metadata that came along."""

    path: Path
    size: int
    digest: str
    """SHA-256 in hex."""
    metadata: bytes
    """JSON, not yet parsed."""
    attached: Attachment | None = None
    """The optional part, if one is known and it was there."""
    kind: str | None = None
    """``safetensors`` if the client's name of the file says so; a name is good for nothing else."""


@asynccontextmanager
async def receive(
    http_request: Request, *, metadata_header: str, limit: int, attachment: str | None = None
) -> AsyncIterator[Upload]:
    """Read an upload to scratch; nothing stays there when the block ends.

    Args:
        http_request: the call, its body unread.
        metadata_header: header that carries base64 JSON beside a raw body.
        limit: most bytes of the file, and of the attachment.
        attachment: name of an optional part of a multipart body.

    Raises:
        ServiceError: for everything that is wrong with the transport or the digests.
    """
    check_encoding(http_request)
    if "content-length" not in http_request.headers:
        raise LengthRequired(detail="Say how long the body is, or use POST /uploads.")
    with await asyncio.to_thread(Home, blobs()) as folder:
        sink = Sink(folder / "upload", limit)
        more = {} if attachment is None else {attachment: Sink(folder / "attachment", limit)}
        try:
            media_type = http_request.headers.get("content-type", "").partition(";")[0]
            if media_type.strip().lower() == "multipart/form-data":
                yield await _multipart(http_request, sink, more, limit)
            elif media_type.strip().lower() == "application/octet-stream":
                yield await _raw(http_request, sink, metadata_header, limit)
            else:
                raise Unsupported(
                    detail="Send multipart/form-data, application/octet-stream with the header "
                    f"{metadata_header}, or application/json with the source of the file."
                )
        finally:
            for each in (sink, *more.values()):
                await asyncio.shield(each.abandon())


async def _multipart(
    http_request: Request, sink: Sink, more: Mapping[str, Sink], limit: int
) -> Upload:
    most = limit * (1 + len(more)) + MULTIPART_MARGIN
    refuse_announced(http_request, most)
    optional = {name: each.feed for name, each in more.items()}
    parts = Parts(http_request.headers["content-type"], sink.feed, optional)
    whole = announced_digests(dict(http_request.headers))
    hasher = hashlib.sha256()
    received = 0
    async with paced() as took:
        async for chunk in http_request.stream():
            took(len(chunk))
            received += len(chunk)
            if received > most:
                raise TooLarge(detail=f"The file is limited to {limit} bytes.")
            if whole:
                hasher.update(chunk)
            parts.feed(chunk)
            for each in (sink, *more.values()):
                await each.drain()
    parts.finish()
    digest = await sink.finish()
    _compare(whole, hasher.hexdigest())
    _compare(announced_digests(parts.headers["file"]), digest)
    attached = None
    for name, each in more.items():
        if name in parts.headers:
            attached = Attachment(each.path, await each.finish())
            _compare(announced_digests(parts.headers[name]), attached.digest)
    kind = "safetensors" if parts.filename.endswith(".safetensors") else None
    return Upload(sink.path, sink.size, digest, bytes(parts.metadata), attached, kind)


async def _raw(http_request: Request, sink: Sink, metadata_header: str, limit: int) -> Upload:
    refuse_announced(http_request, limit)
    metadata = _decoded(http_request.headers.get(metadata_header), metadata_header)
    async with paced() as took:
        async for chunk in http_request.stream():
            took(len(chunk))
            sink.feed(chunk)
            await sink.drain()
    digest = await sink.finish()
    _compare(announced_digests(dict(http_request.headers)), digest)
    return Upload(sink.path, sink.size, digest, metadata)


def _decoded(value: str | None, name: str) -> bytes:
    if value is None:
        raise Unacceptable(detail=f"A raw body needs the header {name}: its metadata in base64.")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("malformed_metadata_header", f"{name} is not base64.") from None


def announced_digests(headers: dict[str, str]) -> list[str]:
    """Return the SHA-256 digests in hex that RFC 9530 headers announce."""
    found = []
    for name in DIGEST_HEADERS:
        if name not in headers:
            continue
        match = re.search(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):", headers[name])
        if match is None:
            raise BadRequest("digest_unsupported", f"{name} must hold sha-256=:<base64>:.")
        found.append(base64.b64decode(match[1]).hex())
    return found


def _compare(expected: list[str], digest: str) -> None:
    if any(given != digest for given in expected):
        raise checksum_mismatch()


def checksum_mismatch() -> Unacceptable:
    """Return the refusal of bytes that are not what was announced."""
    return Unacceptable("checksum_mismatch", "The bytes received have another SHA-256.")
