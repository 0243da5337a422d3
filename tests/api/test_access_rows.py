"""Bad input, rows G: keys and tenancy, one by one; the matrix is in ``test_access_matrix``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event, update
from structlog.testing import capture_logs

from app.settings import Settings
from app.store import keys, session, tables
from app.store.session import engine, transaction

from .world import Tenant, assert_problem

UNKNOWN = "lth_" + "0" * 12 + "_" + "0" * 43 + "000000"


def refused(
    tenant: Tenant,
    headers: dict[str, str],
    path: str = "/models",
    code: str = "unauthenticated",
) -> dict[str, object]:
    answer = tenant.http.get(path, headers=headers)
    body = assert_problem(answer, 401, code)
    assert answer.headers["www-authenticate"] == 'Bearer realm="lethe"'
    del body["request_id"], body["trace_id"]
    return body


MALFORMED = {
    "none": {},
    "empty": {"Authorization": ""},
    "no-scheme": {"Authorization": UNKNOWN},
    "basic": {"Authorization": "Basic YTpi"},
    "no-key": {"Authorization": "Bearer"},
    "short": {"Authorization": "Bearer lth_"},
    "unknown": {"Authorization": f"Bearer {UNKNOWN}"},
    "long": {"Authorization": "Bearer " + "x" * 10_000},
    "latin-1": {"Authorization": b"Bearer lth_\xe9\xff"},
}


@pytest.mark.parametrize("row", MALFORMED)
def test_G1_no_usable_key(tenant: Tenant, row: str) -> None:
    assert refused(tenant, MALFORMED[row]) == refused(tenant, {})


def edited(key: str, place: int) -> str:
    swapped = "a" if key[place] != "a" else "b"
    return key[:place] + swapped + key[place + 1 :]


def test_G2_wrong_secret_with_right_checksum(tenant: Tenant) -> None:
    public = tenant.key.split("_")[1]
    body = f"lth_{public}_{'0' * 43}"
    forged = body + keys._checksum(body)
    assert refused(tenant, {"Authorization": f"Bearer {forged}"}) == refused(tenant, {})


def test_G2_bad_checksum_asks_no_database(tenant: Tenant) -> None:
    statements: list[str] = []
    event.listen(engine(), "before_cursor_execute", lambda *a: statements.append(a[2]))
    refused(tenant, {"Authorization": f"Bearer {edited(tenant.key, 30)}"})
    assert statements == []
    tenant.get("/models")
    assert statements


@pytest.mark.parametrize("reason", ["expired", "revoked"])
def test_G3_expired_or_revoked(tenant: Tenant, reason: str) -> None:
    past = datetime.now(UTC) - timedelta(minutes=1)
    with transaction() as writer:
        change = {"expired": "expires_at", "revoked": "revoked_at"}[reason]
        writer.execute(update(tables.ApiKey).values({change: past}))
    with capture_logs() as logs:
        body = refused(tenant, tenant.headers(), code="invalid_api_key")
    assert reason not in str(body)
    assert [e["reason"] for e in logs if e["event"] == "access_refused"] == [reason]


def test_G3_expired_with_the_wrong_secret_tells_nothing(tenant: Tenant) -> None:
    past = datetime.now(UTC) - timedelta(minutes=1)
    with transaction() as writer:
        writer.execute(update(tables.ApiKey).values(expires_at=past))
    body = f"lth_{tenant.key.split('_')[1]}_{'0' * 43}"
    forged = {"Authorization": f"Bearer {body + keys._checksum(body)}"}
    assert refused(tenant, forged) == refused(tenant, {})


def test_G3_revocation_is_effective_at_once(tenant: Tenant) -> None:
    secret = tenant.key_with("models:read")
    headers = {"Authorization": f"Bearer {secret}"}
    assert tenant.http.get("/models", headers=headers).status_code == 200
    (made,) = [key for key in tenant.get("/api-keys").json()["data"] if key["name"] == "other"]
    assert tenant.call("DELETE", f"/api-keys/{made['id']}").status_code == 204
    refused(tenant, headers, code="invalid_api_key")


def test_G4_missing_scope(tenant: Tenant) -> None:
    tenant.key = tenant.key_with("datasets:read")
    problem = assert_problem(tenant.get("/models"), 403, "insufficient_scope")
    assert problem["required_scope"] == "models:read"
    assert "models:read" in problem["detail"]


def test_G6_foreign_id_in_a_body(tenant: Tenant, other: Tenant) -> None:
    answer = tenant.forget(other.ready_model())
    problem = assert_problem(answer, 404, "not_found")
    unknown = tenant.forget("mdl_01JD0000000000000000000000").json()
    for body in (problem, unknown):
        del body["request_id"], body["trace_id"]
    assert problem == unknown


def test_G7_foreign_parent(tenant: Tenant, other: Tenant) -> None:
    mine, theirs = tenant.ready_model(), other.ready_model()
    my_version = tenant.get(f"/models/{mine}/versions/1").json()["id"]
    their_version = other.get(f"/models/{theirs}/versions/1").json()["id"]
    for path in (
        f"/models/{theirs}/versions/{my_version}",
        f"/models/{mine}/versions/{their_version}",
        f"/models/{tenant.ready_model()}/versions/{my_version}",
    ):
        assert_problem(tenant.get(path), 404, "not_found")
        assert_problem(tenant.get(f"{path}/checkpoint"), 404, "not_found")


@pytest.mark.parametrize("field", ["tenant_id", "role", "status", "applied_at", "id"])
def test_G8_fields_of_ours(tenant: Tenant, field: str) -> None:
    model_id = tenant.ready_model()
    assert_problem(tenant.forget(model_id, **{field: "x"}), 422, "unknown_field")
    assert_problem(tenant.post_model(**{field: "x"}), 422, "unknown_field", scratch=tenant.scratch)
    body = {"name": "k", "scopes": ["models:read"], field: "x"}
    assert_problem(tenant.call("POST", "/api-keys", json=body), 422, "unknown_field")


def test_G9_lists_show_nothing_foreign(tenant: Tenant, other: Tenant) -> None:
    other.forget(other.ready_model())
    for path in ("/models", "/datasets", "/unlearn-requests", "/jobs"):
        page = tenant.get(path).json()
        assert (page["data"], page["has_more"], page["next_cursor"]) == ([], False, None)
        assert other.get(path).json()["data"]
    assert [key["name"] for key in tenant.get("/api-keys").json()["data"]] == ["all"]


def test_G11_key_in_the_query(tenant: Tenant) -> None:
    for name in ("api_key", "key", "access_token", "authorization"):
        with capture_logs() as logs:
            refused(tenant, {}, f"/models?{name}={tenant.key}")
        (entry,) = [each for each in logs if each["event"] == "access_refused"]
        assert entry["log_level"] == "warning"
        assert entry["key_in_query"] is True
        assert tenant.key not in str(entry)


def test_G12_many_failures_from_one_address(tenant: Tenant, settings: Settings) -> None:
    session.configure(settings.model_copy(update={"failed_keys_per_minute": 20}))
    for _ in range(20):
        refused(tenant, {"Authorization": f"Bearer {UNKNOWN}"})
    answer = tenant.http.get("/models", headers={"Authorization": f"Bearer {UNKNOWN}"})
    problem = assert_problem(answer, 429, "rate_limited")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert problem["retryable"] is True
    statements: list[str] = []
    event.listen(engine(), "before_cursor_execute", lambda *a: statements.append(a[2]))
    assert_problem(tenant.get("/models"), 429, "rate_limited")
    assert statements == [], "an address that guesses is refused before anything is looked up"


def test_G12_one_host_has_a_64_of_addresses(api: FastAPI, settings: Settings) -> None:
    session.configure(settings.model_copy(update={"failed_keys_per_minute": 2}))
    addresses = ("2001:db8::1", "2001:db8::2:1", "2001:db8::ffff:3", "2001:db8:0:1::1")
    found = [TestClient(api, client=(each, 1)).get("/me").status_code for each in addresses]
    assert found == [401, 401, 429, 401]


def test_a_proxy_is_known_in_either_family(api: FastAPI, settings: Settings) -> None:
    proxies = (ip_network("10.0.0.0/8"),)
    session.configure(settings.model_copy(update={"trusted_proxies": proxies}))
    proxy = TestClient(api, client=("::ffff:10.0.0.1", 1))
    with capture_logs() as logs:
        proxy.get("/me", headers={"X-Forwarded-For": "::ffff:192.0.2.7"})
    assert [each["address"] for each in logs if each["event"] == "access_refused"] == ["192.0.2.7"]


def test_G12_the_default_stops_a_thousand(settings: Settings) -> None:
    assert Settings(data_dir=settings.data_dir).failed_keys_per_minute < 1000


def test_G15_no_cors(tenant: Tenant) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
    answer = tenant.http.options("/models", headers=headers)
    assert answer.status_code == 405
    simple = tenant.get("/models", Origin="https://evil.example")
    for found in (answer, simple):
        assert not [name for name in found.headers if name.startswith("access-control")]


def test_G16_spoofed_host(tenant: Tenant) -> None:
    tenant.ready_model()
    tenant.ready_model()
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    answer = tenant.call("GET", "/models?limit=1", headers=headers)
    assert "evil" not in answer.text + str(answer.headers)


def test_G17_last_admin_key(tenant: Tenant) -> None:
    (key,) = tenant.get("/api-keys").json()["data"]
    assert_problem(tenant.call("DELETE", f"/api-keys/{key['id']}"), 409, "last_admin_key")


def test_new_key(tenant: Tenant) -> None:
    body = {"name": "k", "scopes": ["models:read"], "expires_in_days": 1}
    headers = {"Idempotency-Key": "one"}
    made = tenant.call("POST", "/api-keys", json=body, headers=headers).json()
    secret = made.pop("secret")
    assert tenant.http.get("/models", headers={"Authorization": f"Bearer {secret}"}).is_success
    again = tenant.call("POST", "/api-keys", json=body, headers=headers).json()
    assert again == made | {"secret": None}
    assert tenant.get(f"/api-keys/{made['id']}").json() == made
    assert tenant.call("DELETE", f"/api-keys/{made['id']}").status_code == 204
    gone = tenant.http.get("/models", headers={"Authorization": f"Bearer {secret}"})
    assert_problem(gone, 401, "invalid_api_key")


def test_a_key_gives_no_scope_it_lacks(tenant: Tenant) -> None:
    tenant.key = tenant.key_with("keys:manage")
    body = {"name": "k", "scopes": ["models:read"]}
    problem = assert_problem(tenant.call("POST", "/api-keys", json=body), 403, "insufficient_scope")
    assert problem["required_scope"] == "models:read"


@pytest.mark.parametrize("nothing", [{}, {"scopes": []}, {"scopes": [], "roles": []}])
def test_a_new_key_may_do_something(tenant: Tenant, nothing: dict[str, list[str]]) -> None:
    answer = tenant.call("POST", "/api-keys", json={"name": "k", **nothing})
    assert_problem(answer, 422, "validation_failed")
    assert answer.json()["errors"][0]["pointer"] == "/scopes"
