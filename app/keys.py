"""``python -m app.keys``: make, list and revoke API keys on this machine's database."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from app.store import keys
from app.store.session import at_head, reading, settings, transaction, upgrade
from app.store.tables import ApiKey, Tenant

DEFAULT_DAYS = 90
MOST_DAYS = 365


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    given = _parser().parse_args(arguments)
    if not at_head():
        if not settings().embedded_database:
            sys.stderr.write("the database is not migrated; run: alembic upgrade head\n")
            return 1
        upgrade()
    status: int = given.run(given)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.keys", description=__doc__)
    commands = parser.add_subparsers(required=True)
    create = commands.add_parser("create", help="make a key and print it once")
    create.add_argument("--tenant", required=True, type=_name, help="made if there is none")
    create.add_argument(
        "--scopes",
        required=True,
        type=_scopes,
        help=f"comma-separated, or 'all': {', '.join(sorted(keys.SCOPES))}",
    )
    create.add_argument("--name", default="command line", type=_name, help="for people")
    create.add_argument(
        "--expires-days", default=DEFAULT_DAYS, type=_days, help=f"1 to {MOST_DAYS}"
    )
    create.set_defaults(run=_create)
    listing = commands.add_parser("list", help="list keys, without their secrets")
    listing.add_argument("--tenant", type=_name, help="only this tenant's")
    listing.set_defaults(run=_list)
    revoke = commands.add_parser("revoke", help="make a key useless at once")
    revoke.add_argument("id", help="key_...")
    revoke.set_defaults(run=_revoke)
    return parser


def _create(given: argparse.Namespace) -> int:
    expires_at = datetime.now(UTC) + timedelta(days=given.expires_days)
    with transaction() as session:
        tenant = keys.ensure_tenant(session, given.tenant)
        key, text = keys.create(session, tenant.id, given.name, given.scopes, expires_at)
    sys.stderr.write(f"{key.id} of tenant {given.tenant}, until {expires_at:%Y-%m-%d}; ")
    sys.stderr.write("it is shown this once:\n")
    sys.stdout.write(f"{text}\n")
    return 0


def _list(given: argparse.Namespace) -> int:
    chosen = select(ApiKey, Tenant.name).join(Tenant, Tenant.id == ApiKey.tenant_id)
    if given.tenant is not None:
        chosen = chosen.where(Tenant.name == given.tenant)
    with reading() as session:
        found = session.execute(chosen.order_by(Tenant.name, ApiKey.id)).all()
    for key, tenant in found:
        sys.stdout.write(f"{key.id}  {tenant}  {key.name}  {_state(key)}  {','.join(key.scopes)}\n")
    return 0


def _revoke(given: argparse.Namespace) -> int:
    with transaction() as session:
        key = session.scalars(select(ApiKey).where(ApiKey.id == given.id)).one_or_none()
        if key is None:
            sys.stderr.write("no such key\n")
            return 1
        keys.revoke(session, key.tenant_id, key.id, force=True)
    return 0


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "live"
    live = key.expires_at > datetime.now(UTC)
    return f"{'until' if live else 'expired'} {key.expires_at:%Y-%m-%d}"


def _name(text: str) -> str:
    if not 1 <= len(text) <= 255 or not text.isprintable():
        raise argparse.ArgumentTypeError("1 to 255 printable characters")
    return text


def _scopes(text: str) -> frozenset[str]:
    if text == "all":
        return keys.SCOPES
    scopes = frozenset(each.strip() for each in text.split(","))
    if unknown := scopes - keys.SCOPES:
        raise argparse.ArgumentTypeError(f"no such scope: {', '.join(sorted(unknown))}")
    return scopes


def _days(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= MOST_DAYS:
        raise argparse.ArgumentTypeError(f"1 to {MOST_DAYS}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
