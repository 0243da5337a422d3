"""Uploads in pieces, by the tus protocol 1.0: a broken one goes on where it stopped."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.routing import APIRoute
from pydantic import Field
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from ..store import partial, tables, uploads
from ..store.errors import (
    BadRequest,
    Conflict,
    Gone,
    NotFound,
    ServiceError,
    TooLarge,
    Unacceptable,
    Unsupported,
)
from ..store.keys import Caller
from ..store.session import reading, settings, transaction
from ..store.status import UPLOAD_OPEN
from . import examples, limits
from .appending import Checksum, ChecksumMismatch, append
from .deps import ReadSession, requires
from .idempotency import Answer, OptionalOnce
from .ids import UploadId
from .pace import TooSlow
from .problems import InsufficientStorage, problems
from .schema import accepts
from .shapes import Links, Sha256, Shape
from .strict_json import Body, check_encoding, optional_body
from .uploads import announced_digests

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,termination,expiration,checksum"
ALGORITHMS = {"sha1": 20, "sha256": 32}
PIECE = "application/offset+octet-stream"
LONGEST_METADATA = 4096
BYTES = {
    "requestBody": {
        "required": True,
        "content": {PIECE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


class VersionMismatch(ServiceError):
    """The call speaks another version of tus, or none."""

    status = 412
    default_code = "tus_version_unsupported"


class TusRoute(APIRoute):
    """A route whose every answer names the version of tus."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of the route, with the header on answers and refusals."""
        handler = super().get_route_handler()

        async def handle(http_request: Request) -> Response:
            try:
                answer = await handler(http_request)
            except ServiceError as error:
                error.headers["Tus-Resumable"] = VERSION
                raise
            answer.headers["Tus-Resumable"] = VERSION
            return answer

        return handle


router = APIRouter(tags=["uploads"], route_class=TusRoute)


class Upload(Shape):
    """A file that arrives in pieces."""

    object: Literal["upload"] = "upload"
    id: str
    status: str = Field(
        description="`created`, `receiving`, `received`, `verified`, or it ended as `failed`, "
        "`expired` or `aborted`."
    )
    size_bytes: int = Field(description="As announced.")
    received_bytes: int = Field(description="How many of them are safe on disk.")
    digest: str | None = Field(description="`sha256:` and hex, once all bytes are there.")
    failure: dict[str, str] | None = Field(description="`code` and `detail` if it failed.")
    used_by: str | None = Field(description="Id of the model or dataset that took the bytes.")
    created_at: datetime
    expires_at: datetime | None = Field(description="When it is removed if nobody touches it.")
    links: Links


class UploadComplete(Shape):
    """What a finished upload must be."""

    sha256: Sha256 | None = Field(None, description="Digest of the whole file.")


def tus_version(
    tus_resumable: Annotated[
        str | None, Header(alias="Tus-Resumable", description=f"`{VERSION}`.")
    ] = None,
) -> None:
    """Refuse other versions of the protocol."""
    if tus_resumable != VERSION:
        raise VersionMismatch(
            detail=f"Send the header Tus-Resumable: {VERSION}.", headers={"Tus-Version": VERSION}
        )


Tus = Depends(tus_version)


def piece_checksum(
    upload_checksum: Annotated[
        str | None,
        Header(
            alias="Upload-Checksum",
            description="Algorithm (`sha1` or `sha256`) and base64 of the hash of this piece; with "
            "it the piece counts as a whole or not at all.",
        ),
    ] = None,
) -> Checksum | None:
    """Read ``Upload-Checksum``."""
    if upload_checksum is None:
        return None
    algorithm, _, encoded = upload_checksum.partition(" ")
    try:
        digest = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != ALGORITHMS.get(algorithm):
        known = " or ".join(ALGORITHMS)
        raise BadRequest(
            "digest_unsupported", f"Upload-Checksum must be {known}, a space and base64."
        )
    return Checksum(algorithm, digest)


PieceChecksum = Annotated[Checksum | None, Depends(piece_checksum)]


@router.options(
    "/uploads",
    status_code=204,
    operation_id="describe_uploads",
    dependencies=[requires("uploads:write")],
)
def describe_uploads() -> Response:
    """Say which parts of tus are spoken here, and how large a file may be."""
    return Response(
        status_code=204,
        headers={
            "Tus-Version": VERSION,
            "Tus-Extension": EXTENSIONS,
            "Tus-Max-Size": str(_largest()),
            "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        },
    )


@router.post(
    "/uploads",
    status_code=201,
    operation_id="create_upload",
    response_model=Upload,
    dependencies=[requires("uploads:write"), Tus],
    responses=problems(
        BadRequest,
        VersionMismatch,
        TooLarge,
        Unsupported,
        Unacceptable,
        ChecksumMismatch,
        InsufficientStorage,
    ),
)
async def create_upload(
    caller: Annotated[Caller, requires("uploads:write")],
    once: OptionalOnce,
    http_request: Request,
    checksum: PieceChecksum,
    upload_length: Annotated[
        str | None, Header(alias="Upload-Length", description="Bytes of the whole file.")
    ] = None,
    upload_metadata: Annotated[
        str | None,
        Header(
            alias="Upload-Metadata",
            description="Pairs of a name and base64, by commas. `sha256` announces the digest of "
            "the whole file in hex; the rest is yours and given back.",
        ),
    ] = None,
) -> Response:
    """Announce a file that is sent in pieces (tus 1.0: creation, creation-with-upload).

    Send the pieces with `PATCH` to the path in `Location`; after a break, `HEAD` says where to go
    on. Any tus client does this. Name the finished upload as `source` of `POST /models` or
    `POST /datasets`. The first bytes may come along as the body, of the type
    `application/offset+octet-stream`.
    """
    check_encoding(http_request)
    size = _length(upload_length)
    expected = _announced(http_request, upload_metadata)
    has_body = _has_body(http_request)
    if has_body:
        _check_piece(http_request)

    def act(session: Session) -> Answer:
        row = uploads.create(
            session,
            caller.tenant_id,
            size_bytes=size,
            announced_digest=expected,
            upload_metadata=upload_metadata or None,
        )
        headers = {"Location": f"/uploads/{row.id}", **_progress(row)}
        return Answer(201, shape(row), headers)

    fingerprint = f"{size} {expected} {upload_metadata}"
    with limits.upload(caller) if has_body else nullcontext():
        answer = await run_in_threadpool(once.answer, caller, fingerprint, act)
        if has_body and "Idempotency-Replayed" not in answer.headers:
            upload_id = answer.headers["Location"].rpartition("/")[2]
            row = await append(http_request, caller.tenant_id, upload_id, 0, checksum)
            return _created(row)
        return answer


@router.head(
    "/uploads/{upload_id}",
    operation_id="get_upload_offset",
    dependencies=[requires("uploads:write"), Tus],
    responses=problems(NotFound, Gone, VersionMismatch),
)
def get_upload_offset(
    caller: Annotated[Caller, requires("uploads:write")],
    upload_id: UploadId,
    session: ReadSession,
) -> Response:
    """Say where an upload goes on: `Upload-Offset` is the number of the next byte."""
    row = uploads.get_open(session, caller.tenant_id, upload_id)
    headers = {**_progress(row), "Upload-Length": str(row.size_bytes)}
    if row.upload_metadata is not None:
        headers["Upload-Metadata"] = row.upload_metadata
    return Response(headers=headers)


@router.get(
    "/uploads/{upload_id}",
    operation_id="get_upload",
    response_model=Upload,
    responses=problems(NotFound),
)
def get_upload(
    caller: Annotated[Caller, requires("uploads:write")],
    upload_id: UploadId,
    session: ReadSession,
) -> Upload:
    """Read the state of one upload, also for a week after it ended."""
    return shape(uploads.get(session, caller.tenant_id, upload_id))


@router.patch(
    "/uploads/{upload_id}",
    status_code=204,
    operation_id="append_to_upload",
    dependencies=[requires("uploads:write"), Tus],
    responses=problems(
        BadRequest,
        NotFound,
        TooSlow,
        Conflict,
        Gone,
        VersionMismatch,
        TooLarge,
        Unsupported,
        Unacceptable,
        ChecksumMismatch,
        InsufficientStorage,
    ),
    openapi_extra=BYTES,
)
async def append_to_upload(
    caller: Annotated[Caller, requires("uploads:write")],
    upload_id: UploadId,
    http_request: Request,
    checksum: PieceChecksum,
    upload_offset: Annotated[
        str | None, Header(alias="Upload-Offset", description="Number of the first byte sent.")
    ] = None,
) -> Response:
    """Send the next bytes of an upload.

    If the call breaks off, what came is kept (unless it has an `Upload-Checksum`); `HEAD` says
    where to go on. One call at a time: another one is answered 409 `upload_locked`.
    """
    _check_piece(http_request)
    if not re.fullmatch(r"[0-9]{1,18}", upload_offset or ""):
        raise BadRequest("upload_offset_missing", "Upload-Offset must be a number of bytes.")
    offset = int(upload_offset or 0)
    with limits.upload(caller):
        row = await append(http_request, caller.tenant_id, upload_id, offset, checksum)
    return Response(status_code=204, headers=_progress(row))


@router.delete(
    "/uploads/{upload_id}",
    status_code=204,
    operation_id="abort_upload",
    dependencies=[requires("uploads:write"), Tus],
    responses=problems(NotFound, Gone, VersionMismatch),
)
def abort_upload(
    caller: Annotated[Caller, requires("uploads:write")],
    upload_id: UploadId,
) -> Response:
    """Give an upload up; its bytes are removed."""
    with transaction() as session:
        uploads.abort(session, caller.tenant_id, upload_id)
    partial.remove(caller.tenant_id, upload_id)
    return Response(status_code=204)


@router.post(
    "/uploads/{upload_id}/complete",
    operation_id="complete_upload",
    response_model=Upload,
    responses=problems(BadRequest, NotFound, Conflict, Gone, Unacceptable),
    openapi_extra=accepts("UploadComplete", examples.UPLOAD_COMPLETE, required=False),
)
def complete_upload(
    caller: Annotated[Caller, requires("uploads:write")],
    upload_id: UploadId,
    once: OptionalOnce,
    body: Annotated[Body[UploadComplete], Depends(optional_body(UploadComplete))],
) -> Response:
    """Say that a file is whole; with `sha256` its bytes must have that digest.

    Not needed where the digest came with the announcement, nor before the upload is used. After
    `checksum_mismatch` the upload is failed.
    """
    given = body.value.sha256

    def act(session: Session) -> Answer:
        digest = given[-64:] if given else None
        return Answer(200, shape(uploads.complete(session, caller.tenant_id, upload_id, digest)))

    answer = once.answer(caller, body.fingerprint, act)
    with reading() as session:
        row = uploads.get(session, caller.tenant_id, upload_id)
    if row.status == "failed":
        partial.remove(caller.tenant_id, upload_id)
        raise uploads.failed(row)
    return answer


def shape(row: tables.Upload) -> Upload:
    """Return the shape of an upload row."""
    is_open = row.status in UPLOAD_OPEN and row.used_by is None
    return Upload(
        id=row.id,
        status=row.status,
        size_bytes=row.size_bytes,
        received_bytes=row.received_bytes,
        digest=f"sha256:{row.digest}" if row.digest else None,
        failure=row.failure,
        used_by=row.used_by,
        created_at=row.created_at,
        expires_at=uploads.expires_at(row) if is_open else None,
        links={"self": f"/uploads/{row.id}"},
    )


def _created(row: tables.Upload) -> Response:
    return Response(
        shape(row).model_dump_json(),
        status_code=201,
        media_type="application/json",
        headers={"Location": f"/uploads/{row.id}", **_progress(row)},
    )


def _progress(row: tables.Upload) -> dict[str, str]:
    expires = format_datetime(uploads.expires_at(row).astimezone(UTC), usegmt=True)
    return {"Upload-Offset": str(row.received_bytes), "Upload-Expires": expires}


def _largest() -> int:
    return max(settings().max_model_bytes, settings().max_dataset_bytes)


def _length(text: str | None) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text or ""):
        raise BadRequest("upload_length_missing", "Upload-Length must be a number of bytes.")
    size = int(text or 0)
    if size > _largest():
        raise TooLarge(detail=f"Files are limited to {_largest()} bytes.")
    if size > partial.free_bytes():
        raise InsufficientStorage(detail="The storage has no room for this file.")
    return size


def _has_body(http_request: Request) -> bool:
    length = http_request.headers.get("content-length", "0")
    return length != "0" or "transfer-encoding" in http_request.headers


def _check_piece(http_request: Request) -> None:
    check_encoding(http_request)
    media_type = http_request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != PIECE:
        raise Unsupported(detail=f"Send pieces as {PIECE}.")


def _announced(http_request: Request, upload_metadata: str | None) -> str | None:
    """Return the SHA-256 in hex that the client says the file has, if it says so."""
    given = {*announced_digests(dict(http_request.headers))}
    value = _pairs(upload_metadata or "").get("sha256")
    if value is not None:
        given.add(value.decode("latin-1").removeprefix("sha256:"))
    if len(given) > 1 or not all(re.fullmatch(r"[0-9a-f]{64}", each) for each in given):
        raise BadRequest("digest_unsupported", "Announce one SHA-256, in hex.")
    return given.pop() if given else None


def _pairs(text: str) -> dict[str, bytes]:
    if len(text) > LONGEST_METADATA:
        raise BadRequest(
            "malformed_metadata_header", f"Upload-Metadata is limited to {LONGEST_METADATA} bytes."
        )
    found: dict[str, bytes] = {}
    for pair in text.split(",") if text.strip() else ():
        name, _, encoded = pair.strip().partition(" ")
        try:
            value = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            value = None
        if not re.fullmatch(r"[\x21-\x2b\x2d-\x7e]+", name) or name in found or value is None:
            raise BadRequest(
                "malformed_metadata_header",
                "Upload-Metadata is pairs of a name and base64, by commas.",
            )
        found[name] = value
    return found
