"""API keys: ``lth_<12 public characters>_<43 secret ones><6 of a checksum>`` -> Caller."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import string
import threading
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from .errors import Conflict, Forbidden, NotFound, Unauthenticated
from .ids import new
from .keyed import keyed_hash
from .scopes import SCOPES
from .tables import ApiKey, Tenant

__all__ = ["SCOPES"]

USE_SECONDS = 60.0
"""``last_used_at`` is written at most this often."""

Network = IPv4Network | IPv6Network

MOST_DAYS = 365
"""No key that anybody is given is good for longer."""

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
    principal: str
    """The first key of the line that rotation made; what is remembered of a key outlives it."""
    networks: tuple[Network, ...] = ()
    """Where the key may be used from; anywhere if empty."""


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
    *,
    networks: Iterable[str] = (),
    principal: str = "",
) -> tuple[ApiKey, str]:
    """Make a key; the text returned beside the row is shown once and stored nowhere.

    Args:
        session: of the caller's transaction.
        tenant_id: whose key.
        name: for people.
        scopes: what it may do.
        expires_at: its end; None for none.
        networks: CIDR ranges that it may be used from; anywhere if empty.
        principal: first key of the line that it goes on with; its own by default.

    Raises:
        ValueError: if there is no scope, one that does not exist, or no such network.
    """
    if not scopes or not set(scopes) <= SCOPES:
        raise ValueError(f"scopes must be some of {', '.join(sorted(SCOPES))}")
    public_id, secret = _random(_PUBLIC), _random(_SECRET)
    key_id = new("key")
    key = ApiKey(
        tenant_id=tenant_id,
        id=key_id,
        principal_id=principal or key_id,
        name=name,
        public_id=public_id,
        secret_hmac=keyed_hash("api-key", public_id, secret),
        scopes=sorted(set(scopes)),
        networks=[str(network) for network in _parsed(networks)],
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    body = f"lth_{public_id}_{secret}"
    return key, body + _checksum(body)


def authenticate(session: Session, text: str, address: str | None = None) -> Caller:
    """Return whose key ``text`` is.

    A wrong checksum is refused without a query. The reason in an error's ``extra`` is for the log;
    whoever does not hold the secret learns nothing from the code either.

    Args:
        session: any.
        text: the key.
        address: where the call comes from; None only where no network decides.

    Raises:
        Unauthenticated: ``unauthenticated`` for what is no key of ours; ``invalid_api_key`` for
            one that is expired, revoked, or not to be used from there.
    """
    public_id, secret = _parse(text)
    key = session.scalars(select(ApiKey).where(ApiKey.public_id == public_id)).one_or_none()
    stored = key.secret_hmac if key is not None else "0" * 64
    same = hmac.compare_digest(stored, keyed_hash("api-key", public_id, secret))
    if key is None or not same:
        raise Unauthenticated(extra={"reason": "unknown" if key is None else "wrong_secret"})
    networks = tuple(_parsed(key.networks))
    reason = _fault(key, networks, address)
    if reason is not None:
        raise Unauthenticated("invalid_api_key", extra={"reason": reason, "key": key.id})
    _note_use(key)
    return Caller(key.tenant_id, key.id, frozenset(key.scopes), key.principal_id, networks)


def find(session: Session, tenant_id: str, key_id: str) -> ApiKey:
    """Return the key of that id; raise NotFound if the tenant has none."""
    key = session.get(ApiKey, (tenant_id, key_id))
    if key is None:
        raise NotFound
    return key


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


def rotate(
    session: Session,
    tenant_id: str,
    key_id: str,
    *,
    expires_at: datetime,
    overlap: timedelta,
) -> tuple[ApiKey, str]:
    """Make the key's successor; the key itself ends when the overlap does, or before.

    Scopes, networks, name and principal are the old key's.

    Args:
        session: of the caller's transaction.
        tenant_id: owner of the key.
        key_id: which one.
        expires_at: end of the successor.
        overlap: how long both are good; none makes the old one useless at once.

    Raises:
        NotFound: if the tenant has no such key.
        Conflict: ``state_conflict`` if the key is not live; ``rotation_in_progress`` while its
            principal has two live keys.
    """
    chosen = select(ApiKey).where(ApiKey.tenant_id == tenant_id, ApiKey.id == key_id)
    old = session.scalars(chosen.with_for_update()).one_or_none()
    if old is None:
        raise NotFound
    now = datetime.now(UTC)
    if not _is_live(old, now):
        raise Conflict("state_conflict", "The key is expired or revoked; make a new one.")
    if any(other.principal_id == old.principal_id for other in _live_others(session, old, now)):
        raise Conflict(
            "rotation_in_progress",
            "The key has a successor or a predecessor that is still good; revoke that first.",
        )
    made = create(
        session,
        tenant_id,
        old.name,
        old.scopes,
        expires_at,
        networks=old.networks,
        principal=old.principal_id,
    )
    if overlap:
        end = now + overlap
        old.expires_at = end if old.expires_at is None else min(old.expires_at, end)
    else:
        old.revoked_at = now
    session.flush()
    return made


def refuse_wider(caller: Caller, scopes: Iterable[str], networks: Iterable[str]) -> None:
    """Refuse to let ``caller`` hand out what its own key does not allow.

    Raises:
        Forbidden: ``insufficient_scope`` or ``network_not_allowed``.
    """
    beyond = sorted(set(scopes) - caller.scopes)
    if beyond:
        raise Forbidden(
            detail=f"This key lacks the scope {beyond[0]}, so it can't give it.",
            extra={"required_scope": beyond[0]},
        )
    wanted = _parsed(networks)
    held = [any(_within(network, own) for own in caller.networks) for network in wanted]
    if caller.networks and not (wanted and all(held)):
        raise Forbidden(
            "network_not_allowed",
            "This key is bound to networks, so it can't give a key that is good elsewhere.",
        )


def bootstrap(session: Session) -> str | None:
    """Make a key with every scope, for a year, if there is no key at all; return its text."""
    if session.scalars(select(ApiKey.id).limit(1)).first() is not None:
        return None
    tenant = ensure_tenant(session, "default")
    end = datetime.now(UTC) + timedelta(days=MOST_DAYS)
    return create(session, tenant.id, "bootstrap", SCOPES, end)[1]


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
    # Two calls at once must not each count on the other's key.
    session.get_one(Tenant, key.tenant_id, with_for_update={"key_share": True})
    if not any("keys:manage" in other.scopes for other in _live_others(session, key, now)):
        raise Conflict("last_admin_key", "This is the last key that can manage keys.")


def _live_others(session: Session, key: ApiKey, at: datetime) -> list[ApiKey]:
    """The tenant's other keys that are good now."""
    chosen = select(ApiKey).where(
        ApiKey.tenant_id == key.tenant_id,
        ApiKey.id != key.id,
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > at),
    )
    return [*session.scalars(chosen.execution_options(populate_existing=True))]


def _fault(key: ApiKey, networks: tuple[Network, ...], address: str | None) -> str | None:
    """Why a key with the right secret is not to be used; None if it is."""
    if key.revoked_at is not None:
        return "revoked"
    if not _is_live(key, datetime.now(UTC)):
        return "expired"
    if networks and not _is_inside(address, networks):
        return "address"
    return None


def _is_inside(address: str | None, networks: tuple[Network, ...]) -> bool:
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return any((mapped or found) in network for network in networks)


def _within(network: Network, other: Network) -> bool:
    if isinstance(network, IPv4Network) and isinstance(other, IPv4Network):
        return network.subnet_of(other)
    if isinstance(network, IPv6Network) and isinstance(other, IPv6Network):
        return network.subnet_of(other)
    return False


def _parsed(networks: Iterable[str]) -> list[Network]:
    return [ipaddress.ip_network(network) for network in networks]


def _parse(text: str) -> tuple[str, str]:
    """Split a key into its public id and its secret; raise Unauthenticated unless well-formed."""
    body, check = text[:-_CHECK], text[-_CHECK:]
    well_formed = len(text) == _LENGTH and text.startswith("lth_") and text.isascii()
    if not well_formed or not hmac.compare_digest(check, _checksum(body)):
        raise Unauthenticated(extra={"reason": "malformed"})
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
