"""Row-level security: what the restricted role sees of PostgreSQL, with raw SQL too."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import ProgrammingError

from app.store import isolation, keys, models, tables
from app.store import session as sessions
from app.store.errors import NotFound
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World, settings_of

pytestmark = pytest.mark.postgres
OWNED = [table.name for table in tables.Base.metadata.sorted_tables if "tenant_id" in table.c]


@pytest.fixture
def world(roles: str, migrated_postgres: str, tmp_path: Path) -> Iterator[World]:
    """Two tenants with a model and a key each; the store works as the API's login."""
    sessions.configure(settings_of(tmp_path, migrated_postgres))
    with transaction() as session:
        for table in reversed(tables.Base.metadata.sorted_tables):
            session.execute(table.delete())
        names = [factories.a_tenant(session, name) for name in ("acme", "stranger")]
        for tenant in names:
            keys.create(session, tenant, "k", keys.SCOPES, None)
            factories.a_model(session, tenant)
            session.add(tables.Trash(blob=f"{tenant}/models/x"))
    url = make_url(migrated_postgres).set(username=f"{roles}_api").render_as_string(False)
    settings = settings_of(tmp_path, url, database_tenant_role=f"{roles}_tenant")
    sessions.configure(settings)
    yield World(settings, *names)
    sessions.configure(None)


def acting(tenant: str, work: object) -> object:
    """Run ``work`` as a call of that tenant does."""

    def run() -> object:
        isolation.act_for(tenant)
        return work()

    return contextvars.copy_context().run(run)


def test_every_table_of_tenants_is_protected(world: World) -> None:
    chosen = text(
        "select tablename from pg_policies where policyname = 'tenant_isolation'"
        " and schemaname = current_schema()"
    )
    with reading() as session:
        assert {*session.scalars(chosen)} == {*OWNED, "tenants", "trash"}


@pytest.mark.parametrize("table", [*OWNED, "tenants", "trash"])
def test_raw_sql_sees_nothing_foreign(world: World, table: str) -> None:
    owner = {"tenants": "id", "trash": "split_part(blob, '/', 1)"}.get(table, "tenant_id")

    def seen() -> set[str]:
        with reading() as session:
            return {*session.scalars(text(f'select {owner} from "{table}"'))}

    assert acting(world.tenant, seen) <= {world.tenant}
    if table in ("tenants", "trash", "models", "api_keys", "datasets", "jobs", "records"):
        assert acting(world.tenant, seen) == {world.tenant}
        assert seen() == {world.tenant, world.stranger}


def test_raw_sql_changes_nothing_foreign(world: World) -> None:
    def change() -> int:
        with transaction() as session:
            return session.execute(text("update models set name = 'mine'")).rowcount

    def plant() -> None:
        with transaction() as session:
            chosen = text("insert into trash values (:blob, now())")
            session.execute(chosen, {"blob": f"{world.stranger}/models/y"})

    assert acting(world.tenant, change) == 1
    with pytest.raises(ProgrammingError, match="row-level security"):
        acting(world.tenant, plant)


def test_verbs_work_under_the_role(world: World) -> None:
    def receive() -> str:
        with transaction() as session:
            (model,) = session.scalars(text("select id from models"))
            return factories.a_request(session, world.tenant, model).id

    request_id = acting(world.tenant, receive)
    with reading() as session:
        found = session.get_one(tables.Request, (world.tenant, request_id))
        theirs = session.scalars(
            text("select id from models where tenant_id = :t"), {"t": world.stranger}
        ).one()
        assert models.get(session, world.stranger, theirs)
    assert found.status == "queued"

    def confused() -> None:
        """A verb that is given the wrong tenant by mistake finds nothing."""
        with reading() as session:
            models.get(session, world.stranger, theirs)

    with pytest.raises(NotFound):
        acting(world.tenant, confused)


def test_the_role_does_not_outlive_its_transaction(world: World) -> None:
    def who() -> str:
        with reading() as session:
            return str(session.scalar(text("select current_user")))

    assert acting(world.tenant, who) == world.settings.database_tenant_role
    assert who() == make_url(world.settings.database_url).username
