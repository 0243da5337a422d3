"""What Prometheus reads, and what the service says of itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families as families
from pydantic import SecretStr

from app.settings import Settings
from app.store import models, session, tables

from .world import Tenant, assert_problem

TOKEN = "a token for scrapers, nothing else"


def scrape(tenant: Tenant, key: str = "") -> dict[str, float]:
    """Samples by name and sorted label values."""
    answer = tenant.http.get(
        "/metrics", headers={"Authorization": f"Bearer {key}"} if key else tenant.headers()
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        " ".join([sample.name, *(sample.labels[name] for name in sorted(sample.labels))]): (
            sample.value
        )
        for family in families(answer.text)
        for sample in family.samples
    }


def test_calls_are_counted_by_template(tenant: Tenant) -> None:
    before = scrape(tenant)
    for name in ("job_01JD0000000000000000000000", "someone@example.org"):
        tenant.get(f"/jobs/{name}")
    after = scrape(tenant)
    sample = "lethe_http_requests_total GET /jobs/{job_id} 404"
    assert after[sample] - before.get(sample, 0) == 2
    timed = "lethe_http_request_duration_seconds_count GET /jobs/{job_id}"
    assert after[timed] - before.get(timed, 0) == 2
    assert not any("example.org" in name for name in after)


def test_server_errors_are_there_before_the_first_one(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh process exports 0: a rate would not see a series that begins with its first error."""
    fresh = "from app.api import metrics; print(metrics.generate_latest(metrics._server_errors))"
    shown = subprocess.run([sys.executable, "-c", fresh], capture_output=True, check=True)
    assert b"lethe_http_server_errors_total 0.0" in shown.stdout
    before = scrape(tenant)["lethe_http_server_errors_total"]
    tenant.get("/jobs/someone")
    assert scrape(tenant)["lethe_http_server_errors_total"] == before

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(models, "get", broken)
    assert tenant.get("/models/mdl_01JD0000000000000000000000").status_code == 500
    assert scrape(tenant)["lethe_http_server_errors_total"] == before + 1


def test_calls_held_on_purpose_are_counted_but_not_timed(tenant: Tenant) -> None:
    model_id = tenant.model()
    timed = "lethe_http_request_duration_seconds_count GET /models/{model_id}"
    counted = "lethe_http_requests_total GET /models/{model_id} 200"
    tenant.get(f"/models/{model_id}")
    before = scrape(tenant)
    held = tenant.get(f"/models/{model_id}", Prefer="wait=1")
    assert held.headers["preference-applied"] == "wait"
    after = scrape(tenant)
    assert (after[timed] - before[timed], after[counted] - before[counted]) == (0, 1)


def test_unknown_methods_and_paths_make_no_series(tenant: Tenant) -> None:
    tenant.call("BREW", "/nowhere/at/all")
    assert "lethe_http_requests_total OTHER unmatched 404" in scrape(tenant)


def test_figures_come_from_the_rows(tenant: Tenant) -> None:
    tenant.forget(tenant.ready_model())
    found = scrape(tenant)
    assert found["lethe_jobs unlearn queued"] == 1
    assert found["lethe_requests queued"] == 1
    assert found["lethe_models"] == 1
    assert found["lethe_database_up"] == found["lethe_broker_up"] == 1
    assert 0 < found["lethe_storage_free_bytes"] <= found["lethe_storage_bytes"]
    assert not any(tenant.id in name for name in found)


def test_a_scraper_needs_no_database(tenant: Tenant, settings: Settings) -> None:
    session.configure(settings.model_copy(update={"metrics_token": SecretStr(TOKEN)}))
    assert scrape(tenant, TOKEN)["lethe_database_up"] == 1
    refused = tenant.http.get("/jobs", headers={"Authorization": f"Bearer {TOKEN}"})
    assert_problem(refused, 401, "unauthenticated")
    with session.engine().begin() as connection:
        connection.exec_driver_sql("drop table jobs")
    found = scrape(tenant, TOKEN)
    assert found["lethe_database_up"] == 0
    assert "lethe_http_requests_in_progress" in found


def test_no_token_lets_nobody_in(http: TestClient, settings: Settings) -> None:
    answer = http.get("/metrics", headers={"Authorization": "Bearer "})
    assert_problem(answer, 401, "unauthenticated")


def test_version(tenant: Tenant) -> None:
    body = tenant.get("/version").json()
    assert body["version"].count(".") == 2
    assert body["schema_revision"] == session.revision()


def test_a_job_knows_the_call_that_made_it(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    body = {"model": model_id, "forget": {"type": "record_ids", "record_ids": ["r0"]}}
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = tenant.call(
        "POST",
        "/unlearn-requests",
        json=body,
        headers={
            "Idempotency-Key": "k",
            "X-Request-Id": "my-call",
            "traceparent": f"00-{trace}-00f067aa0ba902b7-01",
        },
    ).json()
    with session.reading() as reader:
        job = reader.get_one(tables.Job, (tenant.id, answer["job_id"]))
        request = reader.get_one(tables.Request, (tenant.id, answer["id"]))
    assert (job.call_id, request.call_id) == ("my-call", "my-call")
    assert job.trace_parent is not None
    assert job.trace_parent.split("-")[1] == trace
