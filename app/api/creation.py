"""Making something of a file: one that comes along with the call, or one that lies elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from ..store import partial, uploads
from ..store.errors import Unacceptable
from ..store.keys import Caller
from . import limits, sources, strict_json
from .adoption import adopt
from .idempotency import Answer, Once
from .sources import Sourced
from .uploads import Upload, checksum_mismatch, receive

Wanted = TypeVar("Wanted", bound=Sourced)
Register = Callable[[Session, str], Answer]


async def create(
    http_request: Request,
    caller: Caller,
    once: Once,
    *,
    shape: type[Wanted],
    header: str,
    limit: int,
    check: Callable[[Wanted, Upload], Register],
    attachment: str | None = None,
) -> Response:
    """Take a file and its metadata, check them, and write down what they make.

    Args:
        http_request: the call, its body unread.
        caller: who calls.
        once: the call's idempotency key.
        shape: of the metadata.
        header: carries the metadata of a raw body.
        limit: most bytes of the file, and of the attachment.
        check: refuses what is wrong with both, or returns what writes the row.
        attachment: name of an optional second file.
    """
    with once.at_work(caller), limits.upload(caller):
        if strict_json.is_json(http_request.headers.get("content-type", "")):
            strict_json.check_encoding(http_request)
            body = strict_json.parse(await strict_json.read_bytes(http_request), shape)
            # Asked first: the answer of a call that used an upload up is still its answer.
            answered = await run_in_threadpool(once.replay, caller, body.fingerprint)
            if answered is not None:
                return answered
            async with sources.fetched(body.value, caller, limit) as upload:
                return await run_in_threadpool(
                    _finish, upload, caller, once, body.fingerprint, body.value, check
                )
        async with receive(
            http_request, metadata_header=header, limit=limit, attachment=attachment
        ) as upload:
            body = strict_json.parse(upload.metadata, shape)
            _refuse_sources(body.value)
            digests = [each.digest for each in (upload, upload.attached) if each is not None]
            fingerprint = strict_json.digest_of([body.fingerprint, *digests])
            return await run_in_threadpool(
                _finish, upload, caller, once, fingerprint, body.value, check
            )


def _finish(
    upload: Upload,
    caller: Caller,
    once: Once,
    fingerprint: str,
    wanted: Wanted,
    check: Callable[[Wanted, Upload], Register],
) -> Response:
    if wanted.sha256 and wanted.sha256[-64:] != upload.digest:
        raise checksum_mismatch()
    register = check(wanted, upload)
    used = sources.uploads_of(wanted)

    def use(session: Session, blob: str) -> Answer:
        answer = register(session, blob)
        for upload_id in used:
            made = answer.headers["Location"].rpartition("/")[2]
            uploads.use(session, caller.tenant_id, upload_id, made)
        return answer

    response = adopt(upload, caller, once, fingerprint, use)
    for upload_id in used:
        partial.remove(caller.tenant_id, upload_id)
    return response


def _refuse_sources(wanted: Sourced) -> None:
    named = wanted.named()
    if named:
        detail = "The file came along; a source is named only where it does not."
        errors = [
            {"pointer": f"/{name}", "message": detail, "code": "source_redundant"} for name in named
        ]
        raise Unacceptable("source_redundant", detail, errors=errors)
