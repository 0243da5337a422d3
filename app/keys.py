"""``python -m app.keys``: make, list, rotate and revoke API keys on this machine's database."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

from sqlalchemy import select

from app.store import keyed, keys
from app.store.errors import NotFound, ServiceError
from app.store.scopes import ROLES
from app.store.session import at_head, reading, settings, transaction, upgrade
from app.store.tables import ApiKey, Tenant

DEFAULT_DAYS = 90
MOST_OVERLAP_HOURS = 168


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    given = _parser().parse_args(arguments)
    if not at_head():
        if not settings().embedded_database:
            sys.stderr.write("the database is not migrated; run: alembic upgrade head\n")
            return 1
        upgrade()
    if fault := keyed.pepper_fault():
        sys.stderr.write(f"{fault}\n")
        return 1
    status: int = given.run(given)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.keys", description=__doc__)
    commands = parser.add_subparsers(required=True)
    create = commands.add_parser("create", help="make a key and print it once")
    create.add_argument("--tenant", required=True, type=_name, help="made if there is none")
    allowed = create.add_mutually_exclusive_group(required=True)
    allowed.add_argument(
        "--scopes",
        type=_scopes,
        help=f"comma-separated, or 'all': {', '.join(sorted(keys.SCOPES))}",
    )
    allowed.add_argument(
        "--role", dest="scopes", type=_role, help=f"instead of scopes: {', '.join(ROLES)}"
    )
    create.add_argument(
        "--network", action="append", default=[], type=_network, help="CIDR; may be repeated"
    )
    create.add_argument("--name", default="command line", type=_name, help="for people")
    create.add_argument(
        "--expires-days", default=DEFAULT_DAYS, type=_days, help=f"1 to {keys.MOST_DAYS}"
    )
    create.set_defaults(run=_create)
    listing = commands.add_parser("list", help="list keys, without their secrets")
    listing.add_argument("--tenant", type=_name, help="only this tenant's")
    listing.set_defaults(run=_list)
    rotate = commands.add_parser("rotate", help="make a key's successor and print it once")
    rotate.add_argument("id", help="key_...")
    rotate.add_argument(
        "--overlap-hours", default=24, type=_hours, help="how long the old one is still good"
    )
    rotate.add_argument(
        "--expires-days", default=DEFAULT_DAYS, type=_days, help=f"1 to {keys.MOST_DAYS}"
    )
    rotate.set_defaults(run=_rotate)
    revoke = commands.add_parser("revoke", help="make a key useless at once")
    revoke.add_argument("id", help="key_...")
    revoke.set_defaults(run=_revoke)
    return parser


def _create(given: argparse.Namespace) -> int:
    expires_at = datetime.now(UTC) + timedelta(days=given.expires_days)
    with transaction() as session:
        tenant = keys.ensure_tenant(session, given.tenant)
        key, text = keys.create(
            session, tenant.id, given.name, given.scopes, expires_at, networks=given.network
        )
    return _show(f"{key.id} of tenant {given.tenant}, until {expires_at:%Y-%m-%d}", text)


def _rotate(given: argparse.Namespace) -> int:
    expires_at = datetime.now(UTC) + timedelta(days=given.expires_days)
    overlap = timedelta(hours=given.overlap_hours)
    try:
        with transaction() as session:
            old = session.scalars(select(ApiKey).where(ApiKey.id == given.id)).one_or_none()
            if old is None:
                raise NotFound(detail="no such key")
            key, text = keys.rotate(
                session, old.tenant_id, old.id, expires_at=expires_at, overlap=overlap
            )
    except ServiceError as error:
        sys.stderr.write(f"{error.detail}\n")
        return 1
    return _show(f"{key.id} in the place of {given.id}, until {expires_at:%Y-%m-%d}", text)


def _show(about: str, text: str) -> int:
    sys.stderr.write(f"{about}; it is shown this once:\n")
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


def _role(text: str) -> frozenset[str]:
    if text not in ROLES:
        raise argparse.ArgumentTypeError(f"one of {', '.join(ROLES)}")
    return ROLES[text]


def _network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _hours(text: str) -> int:
    if not text.isdigit() or not 0 <= int(text) <= MOST_OVERLAP_HOURS:
        raise argparse.ArgumentTypeError(f"0 to {MOST_OVERLAP_HOURS}")
    return int(text)


def _days(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= keys.MOST_DAYS:
        raise argparse.ArgumentTypeError(f"1 to {keys.MOST_DAYS}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
