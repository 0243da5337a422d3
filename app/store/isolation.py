"""Row-level security on PostgreSQL: a second belt beside the tenant filter of every verb.

Policies bind every database role but the owner of the tables and those that bypass them. Where
``LETHE_DATABASE_TENANT_ROLE`` names a bound role, each transaction on behalf of a caller takes it
for its time; docs/access.md says how to make the roles.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sqlalchemy import Connection, text

TENANT = "current_setting('lethe.tenant', true)"
RULES = {
    "tenants": f"id = {TENANT}",
    "trash": f"starts_with(blob, {TENANT} || '/')",
}
"""What belongs to a tenant in tables without a column that says so."""

_caller: ContextVar[str | None] = ContextVar("lethe_tenant", default=None)
_UNPROTECTED = text(
    "select c.relname from pg_class c where c.relnamespace = current_schema()::regnamespace"
    " and c.relkind = 'r' and not c.relrowsecurity"
    " and (c.relname in ('tenants', 'trash') or exists (select 1 from pg_attribute a"
    " where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped))"
    " order by c.relname"
)


def act_for(tenant_id: str) -> None:
    """Let what follows in this task see rows of ``tenant_id`` alone, where the database can."""
    _caller.set(tenant_id)


@contextmanager
def across_tenants() -> Iterator[None]:
    """Let what is in the block see the rows of all tenants, whoever calls."""
    token = _caller.set(None)
    try:
        yield
    finally:
        _caller.reset(token)


def bind(connection: Connection, role: str) -> None:
    """Take ``role`` for the transaction that begins, if it is on behalf of a tenant."""
    tenant_id = _caller.get()
    if tenant_id is not None:
        connection.exec_driver_sql(
            "select set_config('role', %s, true), set_config('lethe.tenant', %s, true)",
            (role, tenant_id),
        )


def protect(connection: Connection) -> list[str]:
    """Give every table of tenants its policy, once; return those that had none."""
    found = [*connection.scalars(_UNPROTECTED)]
    for table in found:
        rule = RULES.get(table, f"tenant_id = {TENANT}")
        connection.execute(text(f'alter table "{table}" enable row level security'))
        connection.execute(text(f'create policy tenant_isolation on "{table}" using ({rule})'))
    return found
