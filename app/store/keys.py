"""API keys: ``lth_<12 public characters>_<43 secret ones><6 of a checksum>`` -> Caller."""

from __future__ import annotations

import hmac
import secrets
import string
import threading
import time
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from . import session as sessions
from .errors import Conflict, NotFound, Unauthenticated
from .ids import new
from .keyed import keyed_hash
from .tables import ApiKey, Tenant

SCOPES = frozenset(
    {
        "models:read",
        "models:write",
        "models:download",
        "datasets:read",
        "datasets:write",
        "uploads:write",
        "requests:create",
        "requests:read",
        "jobs:read",
        "jobs:cancel",
        "evidence:read",
        "keys:manage",
        "ops:read",
    }
)
USE_SECONDS = 60.0
"""``last_used_at`` is written at most this often."""

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_PUBLIC, _SECRET, _CHECK = 12, 43, 6
_LENGTH = len("lth_") + _PUBLIC + 1 + _SECRET + _CHECK

_uses: dict[tuple[str, str], float] = {}
_written: dict[tuple[str, str], float] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Caller:
    """Who calls, and what the key allows."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]


def ensure_tenant(session: Session, name: str) -> Tenant:
    """Return the tenant called ``name``, made if there is none."""
    tenant = session.scalars(select(Tenant).where(Tenant.name == name)).one_or_none()
    if tenant is None:
        tenant = Tenant(id=new("ten"), name=name)
        session.add(tenant)
        session.flush()
    return tenant


def create(
    session: Session,
    tenant_id: str,
    name: str,
    scopes: frozenset[str] | set[str] | list[str],
    expires_at: datetime | None,
) -> tuple[ApiKey, str]:
    """Make a key; the text returned beside the row is shown once and stored nowhere.

    Raises:
        ValueError: if there is no scope, or one that does not exist.
    """
    if not scopes or not set(scopes) <= SCOPES:
        raise ValueError(f"scopes must be some of {', '.join(sorted(SCOPES))}")
    public_id, secret = _random(_PUBLIC), _random(_SECRET)
    key = ApiKey(
        tenant_id=tenant_id,
        id=new("key"),
        name=name,
        public_id=public_id,
        secret_hmac=keyed_hash("api-key", public_id, secret),
        pepper_version=sessions.settings().pepper_version,
        scopes=sorted(set(scopes)),
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    body = f"lth_{public_id}_{secret}"
    return key, body + _checksum(body)


def authenticate(session: Session, text: str) -> Caller:
    """Return whose key ``text`` is.

    A wrong checksum is refused without a query. Unknown, expired and revoked keys are refused
    alike.

    Raises:
        Unauthenticated: if the key is not usable.
    """
    public_id, secret = _parse(text)
    key = session.scalars(select(ApiKey).where(ApiKey.public_id == public_id)).one_or_none()
    stored = key.secret_hmac if key is not None else "0" * 64
    same = hmac.compare_digest(stored, keyed_hash("api-key", public_id, secret))
    if key is None or not same or not _is_live(key, datetime.now(UTC)):
        raise Unauthenticated
    _note_use(key)
    return Caller(key.tenant_id, key.id, frozenset(key.scopes))


def find(session: Session, tenant_id: str, key_id: str) -> ApiKey:
    """Return the key of that id; raise NotFound if the tenant has none."""
    key = session.get(ApiKey, (tenant_id, key_id))
    if key is None:
        raise NotFound
    return key


def list_all(session: Session, tenant_id: str) -> list[ApiKey]:
    """Return the tenant's keys, newest first."""
    chosen = select(ApiKey).where(ApiKey.tenant_id == tenant_id).order_by(ApiKey.id.desc())
    return [*session.scalars(chosen)]


def revoke(session: Session, tenant_id: str, key_id: str, *, force: bool = False) -> ApiKey:
    """Make a key useless from now on; doing it again changes nothing.

    Args:
        session: of the caller's transaction.
        tenant_id: owner of the key.
        key_id: which one.
        force: also if nobody can manage the tenant's keys afterwards.

    Raises:
        Conflict: ``last_admin_key`` unless forced.
    """
    key = find(session, tenant_id, key_id)
    if key.revoked_at is None:
        if not force:
            _refuse_last_admin(session, key)
        key.revoked_at = datetime.now(UTC)
        session.flush()
    return key


def bootstrap(session: Session) -> str | None:
    """Make a key with every scope if there is no key at all, and return its text."""
    if session.scalars(select(ApiKey.id).limit(1)).first() is not None:
        return None
    tenant = ensure_tenant(session, "default")
    return create(session, tenant.id, "bootstrap", SCOPES, None)[1]


def write_uses(session: Session) -> int:
    """Store when keys were last used, apart from the requests that used them; return how many."""
    with _lock:
        fresh = {
            key: at
            for key, at in _uses.items()
            if at - _written.get(key, -USE_SECONDS) >= USE_SECONDS
        }
        _uses.clear()
        _written.update(fresh)
    for tenant_id, key_id in sorted(fresh):
        session.execute(
            update(ApiKey)
            .where(ApiKey.tenant_id == tenant_id, ApiKey.id == key_id)
            .values(last_used_at=datetime.now(UTC))
        )
    return len(fresh)


def unwritten_uses() -> bool:
    """Whether ``write_uses`` would store anything."""
    with _lock:
        return any(at - _written.get(key, -USE_SECONDS) >= USE_SECONDS for key, at in _uses.items())


def _note_use(key: ApiKey) -> None:
    with _lock:
        _uses[key.tenant_id, key.id] = time.monotonic()


def _is_live(key: ApiKey, at: datetime) -> bool:
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > at)


def _refuse_last_admin(session: Session, key: ApiKey) -> None:
    now = datetime.now(UTC)
    if "keys:manage" not in key.scopes or not _is_live(key, now):
        return
    live = select(ApiKey).where(
        ApiKey.tenant_id == key.tenant_id,
        ApiKey.id != key.id,
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now),
    )
    if not any("keys:manage" in other.scopes for other in session.scalars(live)):
        raise Conflict("last_admin_key", "This is the last key that can manage keys.")


def _parse(text: str) -> tuple[str, str]:
    """Split a key into its public id and its secret; raise Unauthenticated unless well-formed."""
    body, check = text[:-_CHECK], text[-_CHECK:]
    well_formed = len(text) == _LENGTH and text.startswith("lth_") and text.isascii()
    if not well_formed or not hmac.compare_digest(check, _checksum(body)):
        raise Unauthenticated
    public_id, _, secret = body.removeprefix("lth_").partition("_")
    return public_id, secret


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), ""
    while len(digits) < _CHECK:
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
