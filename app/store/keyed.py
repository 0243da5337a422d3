"""Keyed hashes: what must be recognised again, but never read back."""

from __future__ import annotations

import hmac
from contextlib import suppress

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from app.settings import Settings

from . import session
from .tables import PepperCheck, Tenant

_kept: tuple[Settings, bytes] | None = None


def _pepper() -> bytes:
    """The pepper of the settings in force; read once, because the file of it is not fast."""
    global _kept
    settings = session.settings()
    if _kept is None or _kept[0] is not settings:
        _kept = (settings, settings.pepper_bytes())
    return _kept[1]


def keyed_hash(purpose: str, tenant_id: str, value: str) -> str:
    """HMAC-SHA-256 under the pepper, in hex; other purposes and tenants give other hashes."""
    message = "\x00".join((purpose, tenant_id, value)).encode("utf-8", "surrogatepass")
    return hmac.digest(_pepper(), message, "sha256").hex()


def subject_hash(tenant_id: str, subject: str) -> str:
    """Hash of a subject; the only form in which a subject is stored."""
    return keyed_hash("subject", tenant_id, subject)


def pepper_fault() -> str | None:
    """Why the pepper must not be used with this database; None if it may.

    With another one nothing that was hashed before would be recognised: no key, and no subject, so
    that requests to forget people would find nobody. Whoever is first notes what tells it apart.
    """
    chosen = session.settings()
    with session.reading() as reader:
        kept = reader.scalar(select(PepperCheck.digest))
        is_used = kept is not None or reader.scalar(select(Tenant.id).limit(1)) is not None
    where = f"LETHE_PEPPER, or the file {chosen.data_dir / 'pepper'},"
    if is_used and not chosen.has_pepper:
        return f"{where} is missing, and the database was used with one; bring it back"
    mine = keyed_hash("pepper", "", "check")
    if kept is None:
        kept = _noted(mine)
    if hmac.compare_digest(kept, mine):
        return None
    return f"{where} is not the one that the database was used with; bring that one back"


def _noted(mine: str) -> str:
    """Note what tells the pepper apart, unless somebody was faster; return what is noted."""
    with session.transaction() as writer:
        with suppress(IntegrityError), writer.begin_nested():
            writer.add(PepperCheck(digest=mine))
        return writer.scalars(select(PepperCheck.digest)).one()
