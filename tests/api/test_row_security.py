"""The API over PostgreSQL under the bound role: all works, and a lost filter shows nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, make_url, select, text
from sqlalchemy.orm import Session

from app.api import appending
from app.settings import Settings
from app.store import models, session, tables, uploads
from app.store.errors import NotFound
from tests.store.conftest import (  # noqa: F401  # fixtures
    emptied,
    migrated_postgres,
    roles,
    settings_of,
)

from .world import Tenant, assert_problem

pytestmark = pytest.mark.postgres


@pytest.fixture
def settings(
    roles: str,  # noqa: F811  # the fixture imported above
    migrated_postgres: str,  # noqa: F811  # the fixture imported above
    tmp_path: Path,
) -> Iterator[Settings]:
    """Settings of a service whose API has a login and a role of its own."""
    url = (
        make_url(emptied(migrated_postgres, tmp_path))
        .set(username=f"{roles}_api")
        .render_as_string(False)
    )
    chosen = settings_of(tmp_path, url, database_tenant_role=f"{roles}_tenant")
    session.configure(chosen)
    yield chosen
    session.configure(None)


def without_filter(reader: Session, _: str, model_id: str) -> tables.Model:
    """``models.get`` as it would be with its filter forgotten."""
    found = reader.scalars(select(tables.Model).where(tables.Model.id == model_id)).one_or_none()
    if found is None:
        raise NotFound
    return found


def test_a_forgotten_filter_shows_nothing_foreign(
    tenant: Tenant, other: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = tenant.ready_model(), other.ready_model()
    monkeypatch.setattr(models, "get", without_filter)
    assert tenant.get(f"/models/{mine}").status_code == 200
    assert tenant.get(f"/models/{theirs}").status_code == 404
    assert tenant.call("DELETE", f"/models/{theirs}").status_code == 404
    assert other.get(f"/models/{theirs}").json()["status"] == "active"


def test_figures_are_those_of_all_tenants(tenant: Tenant, other: Tenant) -> None:
    for each in (tenant, other):
        each.ready_model()
    assert "lethe_models 2.0" in tenant.get("/metrics").text


def test_every_kind_of_call_works_under_the_role(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    request = tenant.forget(model_id).json()
    tenant.publish(request["job_id"])
    second = tenant.forget(model_id, {"type": "record_ids", "record_ids": ["r1"]}, key="one")
    assert second.status_code == 202
    again = tenant.forget(model_id, {"type": "record_ids", "record_ids": ["r1"]}, key="one")
    assert again.json() == second.json()
    for path in (
        "/me",
        "/models",
        f"/models/{model_id}/versions/@serving/checkpoint",
        f"/jobs/{request['job_id']}",
        f"/unlearn-requests/{request['id']}",
        "/unlearn-requests?limit=1",
        "/datasets",
        "/api-keys",
        "/version",
    ):
        assert tenant.get(path).status_code == 200, path
    cancelled = tenant.call("DELETE", f"/unlearn-requests/{second.json()['id']}")
    assert cancelled.json()["status"] == "cancelled"
    key_id = tenant.get("/me").json()["key"]["id"]
    assert tenant.call("POST", f"/api-keys/{key_id}/rotate", json={}).status_code == 201
    assert tenant.call("DELETE", f"/models/{model_id}").status_code == 204


def only_read(connection: Connection) -> None:
    connection.exec_driver_sql("set transaction read only")


def test_a_standby_reads_and_is_an_outage_for_writes(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    event.listen(session.engine(), "begin", only_read)
    assert tenant.get(f"/models/{model_id}").status_code == 200
    answer = tenant.call("DELETE", f"/models/{model_id}")
    assert_problem(answer, 503, "database_unavailable")
    assert answer.headers["retry-after"] == "5"


def test_checkpoints_of_an_upload_take_the_role(
    tenant: Tenant, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    def advance(writer: Session, *args: Any, **options: Any) -> tables.Upload:
        taken.append(writer.scalars(text("select current_user::text")).one())
        return write_down(writer, *args, **options)

    write_down = uploads.advance
    monkeypatch.setattr(uploads, "advance", advance)
    monkeypatch.setattr(appending, "CHECKPOINT_SECONDS", 0.0)
    tenant.finished_upload(b"some bytes")
    assert len(taken) > 1, "there was no checkpoint on the way"
    assert {*taken} == {settings.database_tenant_role}
