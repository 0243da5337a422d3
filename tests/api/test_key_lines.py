"""Keys over their life: roles, networks, rotation, expiry, and what a key says of itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from app.settings import Settings
from app.store import session, tables
from app.store.scopes import ROLES
from app.store.session import transaction

from .world import Tenant, assert_problem


def make(tenant: Tenant, **body: Any) -> dict[str, Any]:
    answer = tenant.call("POST", "/api-keys", json={"name": "k", **body})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def rotate(tenant: Tenant, key_id: str, **body: Any) -> Any:
    return tenant.call("POST", f"/api-keys/{key_id}/rotate", json=body)


def status_with(tenant: Tenant, secret: str, **headers: str) -> int:
    sent = {"Authorization": f"Bearer {secret}"} | headers
    return int(tenant.http.get("/me", headers=sent).status_code)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_a_set_of_scopes(tenant: Tenant, role: str) -> None:
    made = make(tenant, roles=[role], scopes=["ops:read"])
    assert set(made["scopes"]) == ROLES[role] | {"ops:read"}
    assert role in made["roles"]


def test_roles_are_those_of_the_contract() -> None:
    assert {name: scopes & DECIDING for name, scopes in ROLES.items()} == {
        "ml_engineer": {"models:write", "models:download", "requests:create", "jobs:retry"},
        "privacy_officer": {"requests:create", "requests:approve", "audit:read"},
        "sre": {"keys:manage", "jobs:retry"},
        "auditor": {"audit:read"},
        "pipeline": {"models:write", "models:download", "requests:create"},
    }


DECIDING = frozenset(
    {
        "models:write",
        "models:download",
        "requests:create",
        "requests:approve",
        "jobs:retry",
        "audit:read",
        "keys:manage",
    }
)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"scopes": []}, "/scopes"),
        ({}, "/scopes"),
        ({"roles": ["auditor", "king"]}, "/roles/1"),
        ({"scopes": ["models:read", "models:eat"]}, "/scopes/1"),
        ({"roles": ["auditor"], "networks": ["10.0.0.1/8"]}, "/networks/0"),
        ({"roles": ["auditor"], "networks": ["here"]}, "/networks/0"),
        ({"roles": ["auditor"], "expires_in_days": 366}, "/expires_in_days"),
        ({"roles": ["auditor"], "expires_in_days": 0}, "/expires_in_days"),
    ],
)
def test_new_key_refused(tenant: Tenant, body: dict[str, Any], pointer: str) -> None:
    answer = tenant.call("POST", "/api-keys", json={"name": "k", **body})
    problem = assert_problem(answer, 422, "validation_failed")
    assert {error["pointer"] for error in problem["errors"]} == {pointer}


def test_a_key_ends_after_90_days_by_default(tenant: Tenant) -> None:
    made = make(tenant, roles=["auditor"])
    life = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
    assert timedelta(days=89, hours=23) < life <= timedelta(days=90)


def test_me(tenant: Tenant) -> None:
    made = make(tenant, roles=["auditor"])
    answer = tenant.http.get("/me", headers={"Authorization": f"Bearer {made.pop('secret')}"})
    me = answer.json()
    assert me["tenant"] == {"id": tenant.id, "name": "acme"}
    assert me["key"] == made
    assert me["key"]["roles"] == ["auditor"]
    assert tenant.get("/me").json()["key"]["roles"] == sorted([*ROLES, "admin"])


def test_rotation(tenant: Tenant) -> None:
    old = make(tenant, roles=["pipeline"], expires_in_days=300)
    answer = rotate(tenant, old["id"], overlap_hours=1)
    new = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/api-keys/{new['id']}"
    assert new["id"] != old["id"]
    for same in ("name", "scopes", "networks", "principal"):
        assert new[same] == old[same]
    assert [status_with(tenant, key["secret"]) for key in (old, new)] == [200, 200]
    ends = datetime.fromisoformat(tenant.get(f"/api-keys/{old['id']}").json()["expires_at"])
    assert timedelta(0) < ends - datetime.now(UTC) <= timedelta(hours=1)
    for key in (old, new):
        assert_problem(rotate(tenant, key["id"]), 409, "rotation_in_progress")
    with transaction() as writer:
        chosen = update(tables.ApiKey).where(tables.ApiKey.id == old["id"])
        writer.execute(chosen.values(expires_at=datetime.now(UTC)))
    assert [status_with(tenant, key["secret"]) for key in (old, new)] == [401, 200]
    assert_problem(rotate(tenant, old["id"]), 409, "state_conflict")
    assert rotate(tenant, new["id"]).status_code == 201


def test_rotation_without_an_overlap(tenant: Tenant) -> None:
    old = make(tenant, roles=["pipeline"])
    new = rotate(tenant, old["id"], overlap_hours=0).json()
    assert [status_with(tenant, key["secret"]) for key in (old, new)] == [401, 200]


def test_the_overlap_prolongs_nothing(tenant: Tenant) -> None:
    old = make(tenant, roles=["pipeline"], expires_in_days=1)
    assert rotate(tenant, old["id"], overlap_hours=168).status_code == 201
    assert tenant.get(f"/api-keys/{old['id']}").json()["expires_at"] == old["expires_at"]


def test_what_was_sent_before_a_rotation_is_replayed_after_it(tenant: Tenant) -> None:
    model_id, old = tenant.ready_model(), make(tenant, roles=["pipeline"])
    tenant.key, manager = old["secret"], tenant.key
    first = tenant.forget(model_id, key="one")
    tenant.key = manager
    tenant.key = rotate(tenant, old["id"]).json()["secret"]
    again = tenant.forget(model_id, key="one")
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"


def test_a_replayed_rotation_shows_no_secret(tenant: Tenant) -> None:
    old = make(tenant, roles=["pipeline"])
    headers = {"Idempotency-Key": "one"}
    path = f"/api-keys/{old['id']}/rotate"
    made, again = (tenant.call("POST", path, json={}, headers=headers).json() for _ in range(2))
    assert made["secret"]
    assert again == made | {"secret": None}


@pytest.mark.parametrize("body", [{"overlap_hours": 169}, {"overlap_hours": -1}])
def test_rotation_refused(tenant: Tenant, body: dict[str, Any]) -> None:
    old = make(tenant, roles=["pipeline"])
    assert_problem(rotate(tenant, old["id"], **body), 422, "validation_failed")


def test_rotating_a_stronger_key_is_no_way_to_more(tenant: Tenant) -> None:
    strong = make(tenant, roles=["admin"])
    tenant.key = tenant.key_with("keys:manage")
    assert_problem(rotate(tenant, strong["id"]), 403, "insufficient_scope")
    assert status_with(tenant, strong["secret"]) == 200


def test_the_last_admin_key_may_be_rotated(tenant: Tenant) -> None:
    key_id = tenant.get("/me").json()["key"]["id"]
    tenant.key = rotate(tenant, key_id, overlap_hours=0).json()["secret"]
    found = tenant.get("/me").json()["key"]
    assert "admin" in found["roles"]
    assert_problem(tenant.call("DELETE", f"/api-keys/{found['id']}"), 409, "last_admin_key")


def test_networks(tenant: Tenant, settings: Settings) -> None:
    """The test client has no address, so it comes through a proxy that is trusted."""
    inside = make(tenant, roles=["admin"], networks=["192.0.2.0/24", "2001:db8::/32"])
    assert inside["networks"] == ["192.0.2.0/24", "2001:db8::/32"]
    http, secret = tenant.http, inside["secret"]
    for address, expected in {
        "192.0.2.9": 200,
        "2001:db8::1": 200,
        "::ffff:192.0.2.9": 200,
        "192.0.3.9": 401,
        "2001:db9::1": 401,
        "nowhere": 401,
    }.items():
        http._transport.client = (address, 1)  # type: ignore[attr-defined]
        assert status_with(tenant, secret) == expected, address
    http._transport.client = ("203.0.113.1", 1)  # type: ignore[attr-defined]
    spoofed = {"X-Forwarded-For": "192.0.2.9"}
    assert status_with(tenant, secret, **spoofed) == 401
    proxied = Settings.model_validate(
        settings.model_dump() | {"trusted_proxies": ["203.0.113.0/24"]}
    )
    session.configure(proxied)
    assert status_with(tenant, secret, **spoofed) == 200
    through_two = {"X-Forwarded-For": "192.0.2.9, 198.51.100.1"}
    assert status_with(tenant, secret, **through_two) == 401
    through_ours = {"X-Forwarded-For": "192.0.2.9, 203.0.113.7"}
    assert status_with(tenant, secret, **through_ours) == 200


def test_a_bound_key_gives_no_key_that_is_good_elsewhere(tenant: Tenant) -> None:
    bound = make(tenant, roles=["admin"], networks=["192.0.2.0/24"])
    tenant.http._transport.client = ("192.0.2.9", 1)  # type: ignore[attr-defined]
    anywhere = make(tenant, roles=["admin"])
    tenant.key = bound["secret"]
    assert make(tenant, roles=["auditor"])["networks"] == ["192.0.2.0/24"]
    assert make(tenant, roles=["auditor"], networks=["192.0.2.128/25"])["networks"]
    for networks in (["192.0.0.0/16"], ["192.0.2.0/25", "10.0.0.0/8"], ["::/0"]):
        body = {"name": "k", "roles": ["auditor"], "networks": networks}
        answer = tenant.call("POST", "/api-keys", json=body)
        assert_problem(answer, 403, "network_not_allowed")
    assert_problem(rotate(tenant, anywhere["id"]), 403, "network_not_allowed")
