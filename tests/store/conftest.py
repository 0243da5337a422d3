"""A migrated, empty store on SQLite and on PostgreSQL."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text

from app.settings import Settings
from app.store import session as sessions
from app.store.session import transaction
from app.store.tables import Base
from tests import factories
from tests.servers import database

PEPPER = "p" * 40
ROLES = Path(__file__).resolve().parents[2] / "docs/postgres-roles.sql"


def emptied(url: str, folder: Path) -> str:
    """Remove every row of the database at ``url``; return the URL."""
    sessions.configure(settings_of(folder, url))
    with transaction() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    return url


@dataclass(frozen=True)
class World:
    """The store of one test, with two tenants."""

    settings: Settings
    tenant: str
    stranger: str


def settings_of(folder: Path, url: str = "", **over: object) -> Settings:
    """Settings with a database in ``folder`` unless a URL is given."""
    wanted = {"data_dir": folder, "database_url": url, "pepper": PEPPER} | over
    return Settings.model_validate(wanted)


@pytest.fixture(scope="session")
def migrated_postgres(
    postgres_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """URL of a migrated PostgreSQL database."""
    with database(postgres_server) as url:
        sessions.configure(settings_of(tmp_path_factory.mktemp("postgres"), url))
        sessions.upgrade()
        with transaction() as session:  # a crash of the server in mid-test is not tested
            name = session.scalar(text("select current_database()"))
            session.execute(text(f'alter database "{name}" set synchronous_commit = off'))
        sessions.configure(None)
        yield url


@pytest.fixture(scope="session")
def roles(migrated_postgres: str) -> Iterator[str]:
    """The roles of the documented script under a prefix of our own: they belong to the server."""
    prefix = f"t{uuid.uuid4().hex[:8]}"
    script = re.sub(r"\blethe_", f"{prefix}_", ROLES.read_text())
    plain = make_url(migrated_postgres).set(drivername="postgresql")
    with psycopg.connect(plain.render_as_string(False), autocommit=True) as admin:
        admin.execute(script.encode())
        yield prefix
        for name in ("api", "worker", "tenant", "owner"):
            admin.execute(f"drop owned by {prefix}_{name}; drop role {prefix}_{name}".encode())


@pytest.fixture
def sqlite_store(migrated: Path, tmp_path: Path) -> Iterator[World]:
    """A world on SQLite alone, for what does not depend on the database."""
    shutil.copy(migrated, tmp_path / "lethe.db")
    yield from _world(settings_of(tmp_path))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A world on each database."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated"), tmp_path / "lethe.db")
        yield from _world(settings_of(tmp_path))
        return
    url = emptied(request.getfixturevalue("migrated_postgres"), tmp_path)
    yield from _world(settings_of(tmp_path, url))


def _world(settings: Settings) -> Iterator[World]:
    sessions.configure(settings)
    with transaction() as session:
        tenant = factories.a_tenant(session, "acme")
        stranger = factories.a_tenant(session, "stranger")
    yield World(settings, tenant, stranger)
    sessions.configure(None)
