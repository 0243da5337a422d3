"""A finished upload on its way from scratch into the blob store."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session
from starlette.responses import Response
from ulid import ULID

from ..store.blobs import blobs
from ..store.errors import ServiceError
from ..store.keys import Caller
from .idempotency import REPLAYED, Answer, Once
from .uploads import Upload


def adopt(
    upload: Upload,
    caller: Caller,
    once: Once,
    fingerprint: str,
    register: Callable[[Session, str], Answer],
) -> Response:
    """Keep the bytes of ``upload``, then write their row with ``register(session, blob key)``.

    The bytes come before the row: a row without bytes must not exist. A refusal or a replay takes
    the bytes away again. After any other failure they stay, because the row may be stored: a lost
    answer of a commit says nothing.
    """
    key = f"{caller.tenant_id}/uploads/{ULID()}"
    blobs().adopt(upload.path, key)
    try:
        response = once.settle(caller, fingerprint, lambda session: register(session, key))
    except ServiceError:
        blobs().delete(key)
        raise
    if REPLAYED in response.headers:
        blobs().delete(key)
    return response
