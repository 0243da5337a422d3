"""Polling: ETag, Retry-After, Prefer: wait."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
from sqlalchemy import update

from app.api import waiting
from app.store import jobs, tables
from app.store.session import transaction

from .world import Tenant


@pytest.fixture
def job_id(tenant: Tenant) -> str:
    return str(tenant.forget(tenant.ready_model()).json()["job_id"])


def set_job(job_id: str, **values: object) -> None:
    with transaction() as session:
        session.execute(update(tables.Job).where(tables.Job.id == job_id).values(**values))


def test_etag_holds_until_something_changes(tenant: Tenant, job_id: str) -> None:
    path = f"/jobs/{job_id}"
    first = tenant.get(path)
    etag = first.headers["etag"]
    same = tenant.get(path, If_None_Match=etag)
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    set_job(job_id, metrics={"forget_accuracy": 0.5}, revision=tables.Job.revision + 1)
    changed = tenant.get(path, If_None_Match=etag)
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag
    assert changed.json()["metrics"] == {"forget_accuracy": 0.5}


@pytest.mark.parametrize(("eta", "seconds"), [(None, 2), (1, 2), (100, 25), (10_000, 60)])
def test_retry_after_grows_with_what_is_left(
    tenant: Tenant, job_id: str, eta: float | None, seconds: int
) -> None:
    set_job(job_id, status="running", lease_until=1e12, lease_owner="w", eta_seconds=eta)
    assert tenant.get(f"/jobs/{job_id}").headers["retry-after"] == str(seconds)


def test_no_retry_after_at_the_end(tenant: Tenant, job_id: str) -> None:
    tenant.publish(job_id)
    assert "retry-after" not in tenant.get(f"/jobs/{job_id}").headers


def test_finished_job(tenant: Tenant, job_id: str) -> None:
    version_id = tenant.publish(job_id)
    job = tenant.get(f"/jobs/{job_id}").json()
    assert job["status"] == "succeeded"
    assert job["result"]["outcome"] == "erased_exact"
    assert job["result"]["version"] == version_id
    assert job["result"]["version_number"] == 2
    assert job["result"]["rungs_tried"] == []
    assert "cancel" not in job["links"]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock of waiting: a pause takes no time, but is counted."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(waiting.asyncio, "sleep", sleep)
    monkeypatch.setattr(waiting.time, "monotonic", lambda: sum(slept))
    return slept


def test_wait_ends_when_the_job_is_over(
    tenant: Tenant, job_id: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    published = threading.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3 and not published.is_set():
            published.set()
            tenant.publish(job_id)

    monkeypatch.setattr(waiting.asyncio, "sleep", sleep)
    answer = tenant.get(f"/jobs/{job_id}", Prefer="wait=30")
    assert answer.json()["status"] == "succeeded"
    assert answer.headers["preference-applied"] == "wait"
    assert len(pauses) == 3


@pytest.mark.parametrize(("asked", "waited"), [("wait=7", 7), ("respond-async, wait=900", 60)])
def test_wait_ends_when_the_time_is_up(
    tenant: Tenant, job_id: str, pauses: list[float], asked: str, waited: int
) -> None:
    answer = tenant.get(f"/jobs/{job_id}", Prefer=asked)
    assert answer.json()["status"] == "queued"
    assert sum(pauses) == pytest.approx(waited)


@pytest.mark.parametrize("asked", ["wait=x", "wait", "return=minimal", "wait=-1"])
def test_unreadable_preference_is_no_error(
    tenant: Tenant, job_id: str, pauses: list[float], asked: str
) -> None:
    answer = tenant.get(f"/jobs/{job_id}", Prefer=asked)
    assert answer.status_code == 200
    assert "preference-applied" not in answer.headers
    assert pauses == []


@pytest.mark.parametrize("kind", ["models", "datasets", "unlearn-requests"])
def test_others_wait_too(tenant: Tenant, pauses: list[float], kind: str) -> None:
    if kind == "models":
        path = f"/models/{tenant.model()}"
    elif kind == "datasets":
        path = f"/datasets/{tenant.dataset()}"
    else:
        path = tenant.forget(tenant.ready_model()).json()["links"]["self"]
    assert "retry-after" in tenant.get(path, Prefer="wait=3").headers
    assert sum(pauses) == pytest.approx(3)


def test_ready_things_do_not_wait(tenant: Tenant, pauses: list[float]) -> None:
    model_id = tenant.ready_model()
    dataset_id = tenant.get(f"/models/{model_id}").json()["dataset"]
    for path in (f"/models/{model_id}", f"/datasets/{dataset_id}"):
        answer = tenant.get(path, Prefer="wait=30")
        assert answer.headers["preference-applied"] == "wait"
        assert "retry-after" not in answer.headers
    assert pauses == []


def test_cancel(tenant: Tenant, job_id: str) -> None:
    answer = tenant.call("POST", f"/jobs/{job_id}/cancel")
    assert answer.status_code == 202
    assert answer.json()["status"] == "cancelled"
    assert tenant.get(f"/jobs/{job_id}").json() == answer.json()


def test_cancel_of_a_running_job_is_asked_for(tenant: Tenant, job_id: str) -> None:
    set_job(
        job_id, status="running", lease_until=1e12, lease_owner="w", started_at=datetime.now(UTC)
    )
    answer = tenant.call("POST", f"/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["cancel_requested"]) == (202, True)


def test_cancel_takes_no_options(tenant: Tenant, job_id: str) -> None:
    answer = tenant.call("POST", f"/jobs/{job_id}/cancel", json={"force": True})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_field")


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_what_waits_for_a_retry_is_not_waited_for(
    tenant: Tenant, pauses: list[float], kind: str
) -> None:
    if kind == "models":
        path = f"/models/{tenant.model(dataset_id=tenant.ready_dataset())}"
    else:
        path = f"/datasets/{tenant.dataset()}"
    with transaction() as session:
        (job_id,) = jobs.due(session)
        claim = jobs.claim(session, job_id, "w")
        assert claim is not None
        jobs.fail(session, claim, "gpu_out_of_memory", "too little memory", False)
    answer = tenant.get(path, Prefer="wait=30")
    assert "retry-after" not in answer.headers
    found = answer.json().get("latest_version", answer.json())
    cause = {"code": "gpu_out_of_memory", "detail": "too little memory"}
    assert (found["status"], found["rejection"]) == ("validating", cause)
    assert pauses == []
    job = tenant.get(f"/jobs/{job_id}").json()
    again = tenant.call("POST", job["links"]["retry"])
    assert (again.status_code, again.json()["retry_of"]) == (202, job_id)
    assert "retry-after" in tenant.get(path).headers
