"""Pages: order, cursors, links, filters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from app.store import clock, tables
from app.store.session import engine, transaction

from .world import Tenant, assert_problem


@pytest.fixture
def models(tenant: Tenant) -> list[str]:
    """Ids of five models, newest first."""
    return [tenant.model() for _ in range(5)][::-1]


@contextmanager
def statements() -> Iterator[list[str]]:
    """The SQL statements that are run meanwhile."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        found.append(statement)

    event.listen(engine(), "before_cursor_execute", note)
    yield found
    event.remove(engine(), "before_cursor_execute", note)


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


def test_a_long_page_of_jobs_takes_as_many_statements_as_a_short_one(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    with transaction() as session:
        session.add_all(
            tables.Job(tenant_id=tenant.id, id=f"job_{number}", kind="unlearn", model_id=model_id)
            for number in range(50)
        )
    tenant.get("/jobs")  # what is looked up once is looked up now
    counts = []
    for limit in (5, 50):
        with statements() as found:
            page = tenant.get(f"/jobs?kind=unlearn&limit={limit}").json()
        assert {job["waiting_on"] for job in page["data"]} == {"worker"}
        counts.append((len(page["data"]), len(found)))
    assert counts == [(5, counts[0][1]), (50, counts[0][1])]


def test_each_job_of_a_page_says_what_it_waits_for(tenant: Tenant) -> None:
    busy, idle = tenant.ready_model(), tenant.ready_model()
    raw = tenant.model()
    kept = {"tenant_id": tenant.id, "kind": "unlearn"}
    later = clock.now() + 600.0
    rows = [
        tables.Job(id="job_runs", model_id=busy, status="running", lease_until=later, **kept),
        tables.Job(id="job_lock", model_id=busy, **kept),
        tables.Job(id="job_died", model_id=idle, run_after=later, **kept),
        tables.Job(id="job_full", model_id=idle, run_after=later, held_for="storage_full", **kept),
        tables.Job(id="job_free", model_id=idle, held_for="storage_full", **kept),
        tables.Job(id="job_raw", model_id=raw, **kept),
        tables.Job(id="job_read", tenant_id=tenant.id, kind="ingest"),
    ]
    with transaction() as session:
        session.add_all(rows)
    page = tenant.get("/jobs?limit=100").json()["data"]
    found = {job["id"]: job["waiting_on"] for job in page}
    assert {name: found[name] for name in found if name in {row.id for row in rows}} == {
        "job_runs": None,
        "job_lock": "model_lock",
        "job_died": "backoff",
        "job_full": "storage_full",
        "job_free": "worker",
        "job_raw": "model",
        "job_read": "worker",
    }


@pytest.mark.parametrize("path", ["/models/{id}", "/models"])
def test_only_the_last_version_of_a_chain_is_read(tenant: Tenant, path: str) -> None:
    model_id = tenant.ready_model()
    for record in ("r0", "r1"):
        forget = {"type": "record_ids", "record_ids": [record]}
        tenant.publish(tenant.forget(model_id, forget).json()["job_id"])
    read: list[Any] = []

    def note(version: tables.Version, _context: Any) -> None:
        read.append(version.number)

    event.listen(tables.Version, "load", note)
    found = tenant.get(path.format(id=model_id)).json()
    event.remove(tables.Version, "load", note)
    model = found["data"][0] if "data" in found else found
    assert model["latest_version"]["number"] == 3
    assert read == [3]
