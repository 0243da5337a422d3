"""Limits on calls and uploads, and headers of every answer."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from httpx2 import Response
from redis import Redis
from structlog.testing import capture_logs

from app.api import limits
from app.logs import _correlate as correlated
from app.settings import Settings
from app.store import session

from . import files
from .world import Tenant, assert_problem


def limited(settings: Settings, **over: Any) -> None:
    session.configure(settings.model_copy(update=over))


def test_limit_of_a_key(tenant: Tenant, settings: Settings) -> None:
    limited(settings, calls_per_minute_per_key=3)
    left = []
    for _ in range(3):
        answer = tenant.get("/me")
        assert answer.headers["ratelimit-policy"] == '"key";q=3;w=60'
        left.append(answer.headers["ratelimit"].partition(";t=")[0])
    assert left == ['"key";r=2', '"key";r=1', '"key";r=0']
    refused = tenant.get("/me")
    problem = assert_problem(refused, 429, "rate_limited")
    assert problem["retryable"] is True
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["ratelimit"].startswith('"key";r=0;t=')
    tenant.key = tenant.key_with("models:read")
    assert tenant.get("/me").status_code == 200, "another key has its own bucket"


def test_limit_of_a_tenant(tenant: Tenant, other: Tenant, settings: Settings) -> None:
    limited(settings, calls_per_minute_per_tenant=3)
    second = tenant.key_with("models:read")
    for _ in range(3):
        assert tenant.get("/me").status_code == 200
    tenant.key = second
    answer = tenant.get("/me")
    assert_problem(answer, 429, "rate_limited")
    assert answer.headers["ratelimit-policy"] == '"tenant";q=3;w=60'
    assert other.get("/me").status_code == 200


def test_a_refused_key_leaves_the_tenant_its_calls(tenant: Tenant, settings: Settings) -> None:
    limited(settings, calls_per_minute_per_key=1, calls_per_minute_per_tenant=3)
    found = [tenant.get("/me").status_code for _ in range(5)]
    tenant.key = tenant.key_with("models:read")
    assert [*found, tenant.get("/me").status_code] == [200, 429, 429, 429, 429, 200]


def test_no_limit(tenant: Tenant, settings: Settings) -> None:
    limited(settings, calls_per_minute_per_key=0, calls_per_minute_per_tenant=0)
    assert "ratelimit" not in tenant.get("/me").headers


def test_calls_with_a_key_do_not_count_as_guesses(tenant: Tenant, settings: Settings) -> None:
    limited(settings, failed_keys_per_minute=1)
    assert [tenant.get("/me").status_code for _ in range(3)] == [200] * 3


@pytest.mark.redis
def test_processes_share_their_counts_in_redis(
    tenant: Tenant, settings: Settings, redis_url: str
) -> None:
    for _ in range(2):
        # New settings make a new limiter, as in another process.
        limited(settings, limits_url=redis_url, calls_per_minute_per_key=3)
        assert tenant.get("/me").status_code == 200
    limited(settings, limits_url=redis_url, calls_per_minute_per_key=3)
    assert tenant.get("/me").headers["ratelimit"].startswith('"key";r=0')
    assert_problem(tenant.get("/me"), 429, "rate_limited")
    with Redis.from_url(redis_url) as client:
        client.flushdb()


def away() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def test_without_its_redis_a_process_counts_alone_and_allows_less(
    tenant: Tenant, settings: Settings
) -> None:
    limited(settings, limits_url=away(), calls_per_minute_per_key=20)
    with capture_logs() as logs:
        found = [tenant.get("/me").status_code for _ in range(3)]
    assert found == [200, 200, 429]
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "limits_storage_away"
    ]


def test_without_its_redis_guessing_is_still_refused(tenant: Tenant, settings: Settings) -> None:
    limited(settings, limits_url=away(), failed_keys_per_minute=20)
    found = [tenant.http.get("/me").status_code for _ in range(4)]
    assert found == [401, 401, 429, 429]


def test_a_mute_redis_holds_nobody_up(tenant: Tenant, settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        limited(settings, limits_url=f"redis://127.0.0.1:{server.getsockname()[1]}/0")
        started = time.monotonic()
        assert [tenant.get("/me").status_code for _ in range(5)] == [200] * 5
        assert time.monotonic() - started < limits.PAUSE_SECONDS


def slowly(begun: threading.Event, go_on: threading.Event) -> Any:
    yield files.parquet()[:8]
    begun.set()
    go_on.wait(60)
    yield files.parquet()[8:]


def of_a_dataset(tenant: Tenant, content: Any) -> Response:
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(len(files.parquet())),
        "X-Dataset-Metadata": "eyJuYW1lIjoiZCJ9",
    }
    return tenant.call("POST", "/datasets", content=content, headers=headers)


TUS = {
    "Tus-Resumable": "1.0.0",
    "Content-Type": "application/offset+octet-stream",
    "Upload-Offset": "0",
    "Upload-Length": str(len(files.parquet())),
}


def announced(tenant: Tenant, content: Any) -> Response:
    return tenant.call("POST", "/uploads", content=content, headers=TUS)


def in_a_piece(tenant: Tenant, content: Any) -> Response:
    path = announced(tenant, b"").headers["location"]
    return tenant.call("PATCH", path, content=content, headers=TUS)


@pytest.mark.parametrize("take", [of_a_dataset, announced, in_a_piece])
def test_uploads_in_flight(
    tenant: Tenant, other: Tenant, settings: Settings, take: Callable[[Tenant, Any], Response]
) -> None:
    limited(settings, max_uploads_in_flight=1)
    begun, go_on = threading.Event(), threading.Event()
    answers: list[Response] = []
    first = threading.Thread(
        target=lambda: answers.append(take(tenant, slowly(begun, go_on))),
    )
    first.start()
    assert begun.wait(60)
    refused = take(tenant, files.parquet())
    theirs = take(other, files.parquet())
    go_on.set()
    first.join()
    assert_problem(refused, 429, "uploads_in_flight")
    assert int(refused.headers["retry-after"]) > 0
    assert [answers[0].is_success, theirs.is_success] == [True, True]
    assert take(tenant, files.parquet()).is_success


def test_headers_of_every_answer(tenant: Tenant) -> None:
    for answer in (
        tenant.get("/models"),
        tenant.get("/models/x"),
        tenant.http.get("/models"),
        tenant.http.get("/healthz"),
        tenant.get("/models/" + "a" * 20_000),
    ):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "content-security-policy" not in tenant.http.get("/docs").headers


def test_weights_are_an_attachment_that_nobody_keeps(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    answer = tenant.get(f"/models/{model_id}/versions/1/checkpoint")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "no-store" in answer.headers["cache-control"]


def test_who_read_what_is_logged(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    key_id = tenant.get("/me").json()["key"]["id"]
    path = f"/models/{model_id}/versions/1/checkpoint"
    with capture_logs() as logs:
        answer = tenant.get(path)
        tenant.get("/models/mdl_01JD0000000000000000000000")
    assert [entry for entry in logs if entry["event"] == "read"] == [
        {
            "event": "read",
            "log_level": "info",
            "tenant": tenant.id,
            "key": key_id,
            "method": "GET",
            "path": path,
            "status": 200,
            "request_id": answer.headers["x-request-id"],
        }
    ]


def test_who_asked_after_whom_is_logged(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    subject = {"type": "subject", "subject_ref": "person-1"}
    with capture_logs() as logs:
        answer = tenant.call(
            "POST", "/unlearners/recommend", json={"model": model_id, "forget": subject}
        )
        tenant.call("POST", "/unlearners/recommend", json={})
    assert answer.status_code == 200
    (entry,) = [entry for entry in logs if entry["event"] == "read"]
    assert (entry["tenant"], entry["method"]) == (tenant.id, "POST")
    assert entry["path"] == "/unlearners/recommend"
    assert "person-1" not in str(logs)


def test_the_line_of_a_call_names_the_key_by_its_id(tenant: Tenant) -> None:
    with capture_logs([correlated]) as logs:
        key_id = tenant.get("/me").json()["key"]["id"]
    (entry,) = [entry for entry in logs if entry["event"] == "call"]
    assert (entry["tenant"], entry["key"]) == (tenant.id, key_id)


def test_documentation_is_hidden_beyond_this_machine(tenant: Tenant, settings: Settings) -> None:
    limited(settings, host="0.0.0.0")
    for path in ("/docs", "/openapi.json"):
        assert_problem(tenant.get(path), 404, "not_found")
