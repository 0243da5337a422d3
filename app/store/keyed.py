"""Keyed hashes: what must be recognised again, but never read back."""

from __future__ import annotations

import hmac

from app.settings import Settings

from . import session

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
