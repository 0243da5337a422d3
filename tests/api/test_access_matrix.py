"""Routes x keys, generated from the OpenAPI document: a new route without an entry fails."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient

from app.main import build
from app.store import keys
from app.store.scopes import ROLES, of_role

from .world import Tenant, assert_problem

DOCUMENT = build(dispatcher=False).openapi()
OPEN = {"get_health", "get_readiness"}
OPERATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
GUARDED = sorted(OPERATIONS.keys() - OPEN)
OF_THE_KEY = {"get_me"}
"""What a key says of itself needs no scope."""
SCOPED = [name for name in GUARDED if name not in OF_THE_KEY]
BY_ID = [name for name in GUARDED if "{" in OPERATIONS[name][1] and name != "get_unlearner"]
LISTS = [name for name in GUARDED if name.startswith("list_")]
OURS = {"list_unlearners", "list_pruners", "list_audits", "list_networks"}

# What each route needs to be called; a route that is not here fails the first test.
BODIES: dict[str, dict[str, Any]] = {
    **{name: {} for name in GUARDED if OPERATIONS[name][0] in ("GET", "HEAD", "DELETE")},
    "create_model": {"headers": {"Content-Type": "application/octet-stream"}, "content": b""},
    "create_dataset": {"headers": {"Content-Type": "application/octet-stream"}, "content": b""},
    "create_unlearn_request": {"headers": {"Idempotency-Key": "k"}, "json": {}},
    "create_api_key": {"json": {}},
    "rotate_api_key": {"json": {}},
    "recommend_unlearners": {"json": {}},
    "cancel_job": {},
    "retry_job": {},
    "create_audit": {"json": {}},
    "train_oracle": {"json": {}},
    "train_reference_bank": {"json": {}},
}
TUS = {"Tus-Resumable": "1.0.0"}
BODIES |= {
    "describe_uploads": {},
    "create_upload": {"headers": TUS | {"Upload-Length": "1"}},
    "get_upload_offset": {"headers": TUS},
    "append_to_upload": {
        "headers": TUS | {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"},
        "content": b"x",
    },
    "abort_upload": {"headers": TUS},
    "complete_upload": {},
}
RANDOM = "01JD0000000000000000000000"
PREFIXES = {
    "model_id": "mdl",
    "dataset_id": "dst",
    "request_id": "req",
    "job_id": "job",
    "key_id": "key",
    "upload_id": "upl",
}


def path_of(name: str, ids: dict[str, str]) -> str:
    return OPERATIONS[name][1].format(version="1", name="ssd", **ids)


def random_ids() -> dict[str, str]:
    return {name: f"{prefix}_{RANDOM}" for name, prefix in PREFIXES.items()}


def ids_of(tenant: Tenant) -> dict[str, str]:
    """Make one of everything, and return the ids by path parameter."""
    model_id = tenant.ready_model()
    request = tenant.forget(model_id).json()
    tenant.audit(model_id, request["id"])
    key = tenant.get("/api-keys").json()["data"][0]["id"]
    dataset_id = tenant.get(f"/models/{model_id}").json()["dataset"]
    return {
        "model_id": model_id,
        "dataset_id": dataset_id,
        "request_id": request["id"],
        "job_id": request["job_id"],
        "key_id": key,
        "upload_id": tenant.finished_upload(b"x"),
    }


def call(tenant: Tenant, name: str, ids: dict[str, str], key: str | None) -> Any:
    options = {**BODIES[name]}
    headers = {**options.pop("headers", {})}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return tenant.http.request(OPERATIONS[name][0], path_of(name, ids), headers=headers, **options)


def test_every_route_is_in_the_matrix() -> None:
    assert set(BODIES) == set(GUARDED)
    assert {name.strip("{}") for name in parameters()} <= {*PREFIXES, "version", "name"}


def parameters() -> set[str]:
    return {part for _, path, _ in OPERATIONS.values() for part in path.split("/") if "{" in part}


def scope_of(name: str) -> str:
    (requirement,) = OPERATIONS[name][2]["security"]
    ((scope,),) = requirement.values()
    return str(scope)


@pytest.mark.parametrize("name", SCOPED)
def test_every_route_names_one_scope(name: str) -> None:
    assert scope_of(name) in keys.SCOPES


def test_every_scope_of_a_job_opens_a_route() -> None:
    used = {scope_of(name) for name in SCOPED}
    assert {scope for scope in keys.SCOPES if scope.startswith("jobs:")} <= used
    assert scope_of("retry_job") == "jobs:retry"


def test_every_route_of_the_application_is_in_the_document(api: FastAPI) -> None:
    """A route that is not described would be in no matrix."""
    documented = {(method, path) for method, path, _ in OPERATIONS.values()}
    own = {"/openapi.json", "/docs", "/docs/oauth2-redirect"}
    found = [context for context in iter_route_contexts(api.routes) if context.path not in own]
    assert len(found) >= len(OPERATIONS)
    for context in found:
        routed = {(method, context.path) for method in context.methods or ()}
        assert routed
        assert routed <= documented


@pytest.mark.parametrize("name", sorted(OPEN))
def test_open_routes_name_none(name: str) -> None:
    assert "security" not in OPERATIONS[name][2]


@pytest.mark.parametrize("name", GUARDED)
def test_without_a_key(tenant: Tenant, name: str) -> None:
    answer = call(tenant, name, random_ids(), None)
    assert answer.status_code == 401
    if OPERATIONS[name][0] != "HEAD":
        assert_problem(answer, 401, "unauthenticated")


@pytest.mark.parametrize("name", SCOPED)
def test_without_the_scope(tenant: Tenant, name: str) -> None:
    key = tenant.key_with(*(keys.SCOPES - {scope_of(name)}))
    answer = call(tenant, name, random_ids(), key)
    assert answer.status_code == 403
    if OPERATIONS[name][0] != "HEAD":
        assert assert_problem(answer, 403, "insufficient_scope")["required_scope"] == scope_of(name)


@pytest.mark.parametrize("name", SCOPED)
def test_with_that_scope_alone(tenant: Tenant, name: str) -> None:
    answer = call(tenant, name, random_ids(), tenant.key_with(scope_of(name)))
    assert answer.status_code not in (401, 403)


@pytest.mark.parametrize("name", BY_ID)
def test_G5_foreign_id_reads_like_an_unknown_one(tenant: Tenant, other: Tenant, name: str) -> None:
    theirs, nobodys = ids_of(other), random_ids()
    foreign = call(tenant, name, theirs, tenant.key)
    unknown = call(tenant, name, nobodys, tenant.key)
    assert foreign.status_code == unknown.status_code == 404
    assert told(foreign, theirs) == told(unknown, nobodys)
    if OPERATIONS[name][0] != "HEAD":
        assert_problem(foreign, 404, "not_found")


def told(answer: Any, ids: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    """All that an answer says, but the id of the call and the ids that the caller sent."""
    body = answer.content.replace(answer.headers["x-request-id"].encode(), b"-")
    body = re.sub(rb'"trace_id": ?"[0-9a-f]{32}"', b"", body)
    for name, value in ids.items():
        body = body.replace(value.encode(), name.encode())
    left = {"x-request-id", "content-length", "ratelimit"}
    return body, {name: value for name, value in answer.headers.items() if name not in left}


@pytest.mark.parametrize("role", [*ROLES, "admin"])
def test_role_by_route(tenant: Tenant, other: Tenant, role: str) -> None:
    """What a role lacks is refused before an id is looked at; what it has shows nothing foreign."""
    scopes = of_role(role)
    key, theirs = tenant.key_with(*scopes), ids_of(other)
    for name in SCOPED:
        answer = call(tenant, name, theirs, key)
        if scope_of(name) not in scopes:
            assert answer.status_code == 403, name
        elif name in BY_ID:
            assert answer.status_code == 404, name
        else:
            assert answer.status_code < 500, name
            assert answer.status_code not in (401, 403), name
            assert not any(value in answer.text for value in theirs.values()), name


@pytest.mark.parametrize("path", sorted({OPERATIONS[name][1] for name in BY_ID}))
def test_other_methods_do_not_exist(tenant: Tenant, path: str) -> None:
    documented = {method for method, known, _ in OPERATIONS.values() if known == path}
    filled = path.format(version="1", **random_ids())
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} - documented:
        assert tenant.call(method, filled).status_code == 405, method


def test_foreign_calls_changed_nothing(tenant: Tenant, other: Tenant) -> None:
    ids = ids_of(other)
    before = {name: call(other, name, ids, other.key).content for name in reads()}
    for name in BY_ID:
        call(tenant, name, ids, tenant.key)
    assert {name: call(other, name, ids, other.key).content for name in reads()} == before


def reads() -> list[str]:
    """Routes that show one thing; without a published version there is no job's checkpoint."""
    names = [name for name in BY_ID if OPERATIONS[name][0] == "GET"]
    return [name for name in names if name != "get_job_checkpoint"]


@pytest.mark.parametrize("name", [name for name in LISTS if name not in OURS])
def test_lists_show_nothing_foreign(tenant: Tenant, other: Tenant, name: str) -> None:
    ids = ids_of(other)
    theirs = {item["id"] for item in call(other, name, ids, other.key).json()["data"]}
    assert theirs
    if "{" in OPERATIONS[name][1]:
        assert call(tenant, name, ids, tenant.key).status_code == 404
    else:
        mine = call(tenant, name, ids, tenant.key).json()["data"]
        assert not theirs & {item["id"] for item in mine}


def test_documentation_needs_no_key(http: TestClient) -> None:
    assert http.get("/openapi.json").status_code == 200
    assert http.get("/docs").status_code == 200
    assert http.get("/redoc").status_code == 404
