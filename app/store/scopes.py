"""Scopes, and roles: named sets of scopes that a key can be made with."""

from __future__ import annotations

ROLES: dict[str, frozenset[str]] = {
    "ml_engineer": frozenset(
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
            "jobs:retry",
            "evidence:read",
            "tombstones:read",
        }
    ),
    "privacy_officer": frozenset(
        {
            "models:read",
            "models:withdraw",
            "models:shred",
            "datasets:read",
            "requests:create",
            "requests:read",
            "requests:approve",
            "requests:deny",
            "requests:clock",
            "jobs:read",
            "jobs:cancel",
            "evidence:read",
            "audit:read",
            "policies:write",
            "tombstones:read",
        }
    ),
    "sre": frozenset(
        {
            "models:read",
            "jobs:read",
            "jobs:cancel",
            "jobs:retry",
            "webhooks:manage",
            "ops:read",
            "keys:manage",
        }
    ),
    "auditor": frozenset(
        {"models:read", "requests:read", "jobs:read", "evidence:read", "audit:read"}
    ),
    "pipeline": frozenset(
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
            "tombstones:read",
        }
    ),
}
SCOPES = frozenset().union(*ROLES.values())


def of_role(name: str) -> frozenset[str]:
    """Return the scopes of a role; ``admin`` has every one.

    Raises:
        KeyError: if there is no such role.
    """
    return SCOPES if name == "admin" else ROLES[name]


def roles_within(scopes: frozenset[str]) -> list[str]:
    """Return the roles all of whose scopes are there, by name."""
    return sorted(name for name in (*ROLES, "admin") if of_role(name) <= scopes)
