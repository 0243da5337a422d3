"""Pages: order, cursors, links, filters."""

from __future__ import annotations

import pytest

from .world import Tenant, assert_problem


@pytest.fixture
def models(tenant: Tenant) -> list[str]:
    """Ids of five models, newest first."""
    return [tenant.model() for _ in range(5)][::-1]


def ids(page: dict) -> list[str]:
    return [item["id"] for item in page["data"]]


def test_forward_by_cursor(tenant: Tenant, models: list[str]) -> None:
    first = tenant.get("/models?limit=2").json()
    second = tenant.get(f"/models?limit=2&after={first['next_cursor']}").json()
    third = tenant.get(f"/models?limit=2&after={second['next_cursor']}").json()
    assert ids(first) + ids(second) + ids(third) == models
    assert [page["has_more"] for page in (first, second, third)] == [True, True, False]
    assert third["next_cursor"] is None
    assert first["object"] == "list"


def test_forward_by_link(tenant: Tenant, models: list[str]) -> None:
    found: list[str] = []
    path: str | None = "/models?limit=2&status=active"
    while path is not None:
        answer = tenant.get(path)
        found += ids(answer.json())
        link = answer.links.get("next")
        path = link["url"] if link else None
    assert found == models


def test_backward(tenant: Tenant, models: list[str]) -> None:
    cursor = tenant.get("/models?limit=4").json()["next_cursor"]
    page = tenant.get(f"/models?limit=2&before={cursor}").json()
    assert ids(page) == models[1:3]
    assert page["has_more"] is True
    assert (
        ids(tenant.get(f"/models?limit=2&before={page['next_cursor']}").json())[-1:] == models[:1]
    )


def test_a_page_stays_when_something_is_added(tenant: Tenant, models: list[str]) -> None:
    cursor = tenant.get("/models?limit=2").json()["next_cursor"]
    tenant.model()
    assert ids(tenant.get(f"/models?after={cursor}").json()) == models[2:]


def test_both_ways_at_once(tenant: Tenant) -> None:
    assert_problem(tenant.get("/models?after=a&before=b"), 400, "invalid_parameter")


def test_status_is_repeatable(tenant: Tenant, models: list[str]) -> None:
    tenant.call("DELETE", f"/models/{models[0]}")
    assert ids(tenant.get("/models").json()) == models[1:]
    assert ids(tenant.get("/models?status=deleted").json()) == models[:1]
    assert ids(tenant.get("/models?status=deleted&status=active").json()) == models


def test_requests_and_jobs_by_model(tenant: Tenant) -> None:
    first, second = tenant.ready_model(), tenant.ready_model()
    request = tenant.forget(first).json()
    tenant.forget(second)
    assert ids(tenant.get(f"/unlearn-requests?model={first}").json()) == [request["id"]]
    assert ids(tenant.get(f"/jobs?model={first}&kind=unlearn").json()) == [request["job_id"]]
    assert ids(tenant.get(f"/jobs?model={first}&status=running").json()) == []


def test_versions(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    tenant.publish(tenant.forget(model_id).json()["job_id"])
    page = tenant.get(f"/models/{model_id}/versions?limit=1").json()
    assert [item["number"] for item in page["data"]] == [2]
    rest = tenant.get(f"/models/{model_id}/versions?after={page['next_cursor']}").json()
    assert [item["number"] for item in rest["data"]] == [1]
    assert rest["data"][0]["id"] == page["data"][0]["parent"]
