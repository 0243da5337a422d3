"""Bytes that a tenant has stored, and what does not fit beside them."""

from __future__ import annotations

import pytest

from app.settings import Settings
from app.store import session, tables
from tests.api import files
from tests.api.test_resumable import announce, begin
from tests.api.world import Tenant, assert_problem

SIZE = len(files.parquet())


@pytest.fixture(autouse=True)
def small(settings: Settings) -> None:
    session.configure(settings.model_copy(update={"max_tenant_bytes": 2 * SIZE + 9}))


def test_datasets_and_models_share_the_room(tenant: Tenant, other: Tenant) -> None:
    """What is deleted gives its room back; another tenant has its own."""
    first = tenant.ready_dataset()
    tenant.dataset()
    refused = tenant.upload("/datasets", files.parquet(), {"name": "third"})
    problem = assert_problem(refused, 413, "quota_exceeded", scratch=tenant.scratch)
    assert (problem["limit_bytes"], problem["used_bytes"]) == (2 * SIZE + 9, 2 * SIZE)
    assert_problem(
        tenant.post_model(dataset_id=first), 413, "quota_exceeded", scratch=tenant.scratch
    )
    assert tenant.count(tables.Dataset) == 2
    assert other.dataset()
    assert tenant.call("DELETE", f"/datasets/{first}").status_code == 204
    assert tenant.dataset()


def test_what_is_on_its_way_has_its_room(tenant: Tenant) -> None:
    tenant.dataset()
    begin(tenant, SIZE)
    assert_problem(announce(tenant, 10), 413, "quota_exceeded")
    assert announce(tenant, 9).status_code == 201


def test_without_a_quota_there_is_room_for_everything(tenant: Tenant, settings: Settings) -> None:
    session.configure(settings.model_copy(update={"max_tenant_bytes": 0}))
    assert announce(tenant, 100 * SIZE).status_code == 201
