"""What Compose ships really gives row-level security: its scripts, its logins, its role."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import yaml
from sqlalchemy import make_url, text
from sqlalchemy.exc import ProgrammingError

from app.settings import Settings
from app.store import models, session
from app.store.session import reading, transaction
from tests.servers import database
from tests.store.conftest import settings_of

from .test_row_security import without_filter
from .world import Tenant

ROOT = Path(__file__).resolve().parents[2]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
NAMED = "select rolname from pg_roles where starts_with(rolname, %s)"
PRIVILEGES = text(
    "select rolsuper, rolcreaterole, rolcreatedb from pg_roles where rolname = current_user"
)
SCRIPTS = "/docker-entrypoint-initdb.d/"
ENTRYPOINT = ("-v", "ON_ERROR_STOP=1", "--no-psqlrc", "--no-password")
"""How the image of PostgreSQL runs a script."""

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(shutil.which("psql") is None, reason="no psql on this machine"),
]


def scripts() -> list[Path]:
    """The scripts that Compose gives the image, in the order in which it runs them."""
    mounts = [each.split(":") for each in SERVICES["postgres"]["volumes"]]
    found = {target: source for source, target, *_ in mounts if target.startswith(SCRIPTS)}
    return [ROOT / found[target] for target in sorted(found)]


def login_of(service: str) -> str:
    """The user in the database URL that Compose gives a service."""
    found = re.search(r"//(\w+):", SERVICES[service]["environment"]["LETHE_DATABASE_URL"])
    assert found
    return found[1]


@dataclass(frozen=True)
class Shipped:
    """A database as Compose makes it, with roles under a prefix: they belong to the server."""

    server_url: str
    prefix: str

    def name(self, role: str) -> str:
        return re.sub(r"^lethe_", f"{self.prefix}_", role)

    def url(self, service: str) -> str:
        """URL with which a service connects."""
        login = make_url(self.server_url).set(username=self.name(login_of(service)))
        return login.render_as_string(False)

    def settings(self, service: str, folder: Path) -> Settings:
        environment = SERVICES[service]["environment"]
        role = self.name(environment.get("LETHE_DATABASE_TENANT_ROLE", ""))
        return settings_of(folder, self.url(service), database_tenant_role=role)


@pytest.fixture(scope="module")
def shipped(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shipped]:
    """The scripts were run as the image does, and the migrations as Compose does."""
    folder = tmp_path_factory.mktemp("shipped")
    prefix = f"s{uuid.uuid4().hex[:8]}"
    passwords = dict.fromkeys(SERVICES["postgres"]["environment"], 'it\'s a "password"')
    with database(postgres_server) as url:
        made = Shipped(url, prefix)
        plain = make_url(url).set(drivername="postgresql").render_as_string(False)
        try:
            for script in scripts():
                renamed = folder / script.name
                renamed.write_text(re.sub(r"\blethe_", f"{prefix}_", script.read_text()))
                done = subprocess.run(
                    ["psql", *ENTRYPOINT, "--dbname", plain, "-f", str(renamed)],
                    env={**os.environ, **passwords},
                    check=False,
                    capture_output=True,
                    text=True,
                )
                assert done.returncode == 0, done.stderr
            session.configure(made.settings("migrate", folder))
            session.upgrade()
            session.configure(None)
            yield made
        finally:
            session.configure(None)
            with psycopg.connect(plain, autocommit=True) as admin:
                for (name,) in admin.execute(NAMED, (prefix,)).fetchall():
                    admin.execute(f"drop owned by {name}; drop role {name}".encode())


@pytest.fixture
def settings(shipped: Shipped, tmp_path: Path) -> Iterator[Settings]:
    """Settings of the API of Compose."""
    chosen = shipped.settings("api", tmp_path)
    session.configure(chosen)
    yield chosen
    session.configure(None)


def test_a_forgotten_filter_shows_nothing_foreign(
    tenant: Tenant, other: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = tenant.ready_model(), other.ready_model()
    monkeypatch.setattr(models, "get", without_filter)
    assert tenant.get(f"/models/{mine}").status_code == 200
    assert tenant.get(f"/models/{theirs}").status_code == 404
    assert tenant.get("/readyz").status_code == 200


def test_workers_see_all_tenants_and_write(
    tenant: Tenant, other: Tenant, shipped: Shipped, tmp_path: Path
) -> None:
    of_two = {tenant.get(f"/models/{tenant.ready_model()}").json()["id"], other.ready_model()}
    session.configure(shipped.settings("worker", tmp_path))
    with transaction() as worker:
        assert {*worker.scalars(text("select id from models"))} >= of_two
        assert worker.execute(text("update jobs set priority = priority")).rowcount > 0


@pytest.mark.parametrize("service", ["api", "worker"])
def test_who_serves_or_works_owns_nothing(shipped: Shipped, service: str, tmp_path: Path) -> None:
    session.configure(shipped.settings(service, tmp_path))
    for statement in ("alter table models add x int", "drop table models", "create table x ()"):
        refused = pytest.raises(ProgrammingError, match=r"must be owner|permission denied")
        with refused, transaction() as writer:
            writer.execute(text(statement))
    with reading() as reader:
        (login,) = reader.execute(PRIVILEGES).all()
        assert login == (False, False, False)


def test_every_login_has_its_password_and_no_other_role_logs_in(shipped: Shipped) -> None:
    plain = make_url(shipped.server_url).set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(plain) as admin:
        found = admin.execute(
            "select rolname, rolcanlogin, rolpassword is not null from pg_authid"
            " where starts_with(rolname, %s)",
            (shipped.prefix,),
        ).fetchall()
    logins = {shipped.name(login_of(service)) for service in ("migrate", "api", "worker")}
    assert len(logins) == 3
    role = shipped.name(SERVICES["api"]["environment"]["LETHE_DATABASE_TENANT_ROLE"])
    assert {*found} == {(role, False, False)} | {(login, True, True) for login in logins}
