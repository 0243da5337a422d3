"""The remembered answers of creating calls, one per tenant, principal, method, path and key.

Keys are stored as keyed hashes: callers make them of names and addresses as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from .errors import Conflict, Unacceptable
from .keyed import keyed_hash
from .keys import Caller
from .tables import IdempotencyKey

LEGAL_PATH = "/unlearn-requests"
LEGAL_LIFE = timedelta(days=30)
LIFE = timedelta(hours=24)


def remembered(
    session: Session, caller: Caller, method: str, path: str, key: str, fingerprint: str
) -> IdempotencyKey | None:
    """Return the answer remembered for this call, or None if it is the first.

    On PostgreSQL the key stays reserved until the transaction ends, so that of equal calls at the
    same time only one acts; SQLite has one writer at a time anyway.

    Raises:
        Unacceptable: ``idempotency_key_reused`` if the key came with another body.
        Conflict: ``idempotency_in_progress`` while an equal call is at work elsewhere.
    """
    hashed = keyed_hash("idempotency", caller.tenant_id, key)
    _reserve(session, (caller.tenant_id, caller.principal, method, path, hashed))
    chosen = select(IdempotencyKey).where(
        IdempotencyKey.tenant_id == caller.tenant_id,
        IdempotencyKey.principal == caller.principal,
        IdempotencyKey.method == method,
        IdempotencyKey.path == path,
        IdempotencyKey.key == hashed,
    )
    stored = session.scalars(chosen).one_or_none()
    if stored is None:
        return None
    if stored.expires_at <= datetime.now(UTC):
        session.delete(stored)
        session.flush()
        return None
    if stored.fingerprint != fingerprint:
        raise Unacceptable(
            "idempotency_key_reused", "This Idempotency-Key was used with another body."
        )
    return stored


def remember(
    session: Session,
    caller: Caller,
    method: str,
    path: str,
    key: str,
    fingerprint: str,
    *,
    status_code: int,
    headers: Mapping[str, str],
    body: Mapping[str, Any],
) -> None:
    """Keep an answer in the transaction that made what it tells of."""
    life = LEGAL_LIFE if path == LEGAL_PATH else LIFE
    session.add(
        IdempotencyKey(
            tenant_id=caller.tenant_id,
            principal=caller.principal,
            method=method,
            path=path,
            key=keyed_hash("idempotency", caller.tenant_id, key),
            fingerprint=fingerprint,
            status_code=status_code,
            headers=dict(headers),
            body=dict(body),
            expires_at=datetime.now(UTC) + life,
        )
    )
    session.flush()


def purge(session: Session) -> int:
    """Forget answers that are past their time; return how many."""
    gone = delete(IdempotencyKey).where(IdempotencyKey.expires_at <= datetime.now(UTC))
    return len(session.execute(gone.returning(IdempotencyKey.key)).all())


def _reserve(session: Session, identity: tuple[str, ...]) -> None:
    if session.get_bind().dialect.name != "postgresql":
        return
    digest = hashlib.sha256("\x00".join(identity).encode()).digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    if not session.scalar(select(func.pg_try_advisory_xact_lock(number))):
        raise Conflict(
            "idempotency_in_progress",
            "The first call with this Idempotency-Key is still at work.",
            headers={"Retry-After": "1"},
        )
