"""A finished upload on its way from scratch into the blob store."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sqlalchemy.orm import Session
from starlette.responses import Response
from ulid import ULID

from ..store.blobs import blobs
from ..store.errors import ServiceError
from ..store.keys import Caller
from .idempotency import REPLAYED, Answer, Once
from .uploads import Attachment, Upload


def adopt(
    upload: Upload,
    caller: Caller,
    once: Once,
    fingerprint: str,
    register: Callable[[Session, str], Answer],
) -> Response:
    """Keep the bytes of ``upload``, then write their row with ``register(session, blob key)``.

    What came along is kept, too, under its ``attached_key``. The bytes come before the row: a row
    without bytes must not exist. A refusal or a replay takes the bytes away again. After any other
    failure they stay, because the row may be stored: a lost answer of a commit says nothing.
    """
    key = f"{caller.tenant_id}/uploads/{upload.digest}-{ULID()}"
    kept = {key: upload.path}
    if upload.attached is not None:
        kept[attached_key(key, upload.attached)] = upload.attached.path
    for name, path in kept.items():
        blobs().adopt(path, name)
    try:
        response = once.settle(caller, fingerprint, lambda session: register(session, key))
    except ServiceError:
        _delete(kept)
        raise
    if REPLAYED in response.headers:
        _delete(kept)
    return response


def attached_key(key: str, attached: Attachment) -> str:
    """Return the key of what came along with the upload that is kept under ``key``."""
    folder, _, name = key.rpartition("/")
    return f"{folder}/{attached.digest}-{name.rpartition('-')[2]}-attached"


def _delete(keys: Iterable[str]) -> None:
    for key in keys:
        blobs().delete(key)
