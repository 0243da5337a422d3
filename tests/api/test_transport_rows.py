"""Bad input, rows A: transport and JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from typing import Any

import pytest

from app.settings import Settings
from app.store import session, tables

from . import files
from .world import Tenant, assert_problem

GOOD = {"name": "k", "scopes": ["models:read"]}


def body(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


JSON_ROWS = {
    "A13-over-1-MiB": (body(name="x" * 2**20), 413, "payload_too_large"),
    "A14-nested-10000-deep": (b"[" * 10_000 + b"]" * 10_000, 400, "malformed_json"),
    "A14-nested-100-deep": (b'{"a":' * 100 + b"1" + b"}" * 100, 400, "malformed_json"),
    "A15-invalid-utf8": (b'{"name": "\xff"}', 400, "malformed_json"),
    "A15-bom": (b"\xef\xbb\xbf" + body(), 400, "malformed_json"),
    "A15-truncated": (body()[:-1], 400, "malformed_json"),
    "A15-empty": (b"", 400, "malformed_json"),
    "A16-duplicate-key": (b'{"name": "a", "name": "b"}', 400, "duplicate_json_key"),
    "A17-nan": (b'{"name": NaN}', 422, "invalid_number"),
    "A17-infinity": (b'{"name": -Infinity}', 422, "invalid_number"),
    "A17-1e400": (b'{"name": 1e400}', 422, "invalid_number"),
    "A18-beyond-int64": (body(expires_in_days=2**63), 422, "invalid_number"),
    "A18-5000-digits": (b'{"name": ' + b"9" * 5000 + b"}", 422, "invalid_number"),
    "A19-nul": (b'{"name": "a\\u0000b"}', 422, "invalid_characters"),
    "A20-lone-surrogate": (b'{"name": "\\ud800"}', 422, "invalid_characters"),
    "A20-lone-surrogate-in-a-key": (b'{"\\udfff": 1}', 422, "invalid_characters"),
    "A21-unknown-field": (body(colour="red"), 422, "unknown_field"),
    "A21-wrong-type": (body(scopes="models:read"), 422, "validation_failed"),
}


@pytest.mark.parametrize("row", JSON_ROWS)
def test_json_body(tenant: Tenant, row: str) -> None:
    raw, status, code = JSON_ROWS[row]
    answer = tenant.call(
        "POST", "/api-keys", content=raw, headers={"Content-Type": "application/json"}
    )
    assert_problem(answer, status, code, scratch=tenant.scratch)
    assert tenant.count(tables.ApiKey) == 1


@pytest.mark.parametrize("row", JSON_ROWS)
def test_metadata_part(tenant: Tenant, row: str) -> None:
    """The same reader reads the metadata of uploads, whose shape differs."""
    raw, status, code = JSON_ROWS[row]
    if row == "A18-beyond-int64":
        raw = b'{"name": "a", "metadata": {"n": 9223372036854775808}}'
    if row == "A21-unknown-field":
        raw = b'{"name": "a", "tenant_id": "x"}'
    if row == "A21-wrong-type":
        raw = b'{"name": ["a"]}'
    answer = tenant.upload("/datasets", files.parquet(), raw)
    assert_problem(answer, status, code, scratch=tenant.scratch)


def test_wrong_field_has_a_json_pointer(tenant: Tenant) -> None:
    answer = tenant.call("POST", "/api-keys", json={"name": "k", "scopes": ["models:read", 1]})
    problem = assert_problem(answer, 422, "validation_failed")
    assert [error["pointer"] for error in problem["errors"]] == ["/scopes/1"]


def test_A6_wrong_sha256_in_metadata(tenant: Tenant) -> None:
    answer = tenant.upload("/datasets", files.parquet(), {"name": "d", "sha256": "0" * 64})
    assert_problem(answer, 422, "checksum_mismatch", scratch=tenant.scratch)


@pytest.mark.parametrize("header", ["Repr-Digest", "Content-Digest"])
@pytest.mark.parametrize("path", ["/datasets", "/models"])
def test_A6_wrong_sha256_in_header(tenant: Tenant, path: str, header: str) -> None:
    digest = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    name = "X-Dataset-Metadata" if path == "/datasets" else "X-Model-Metadata"
    headers = {
        "Content-Type": "application/octet-stream",
        name: base64.b64encode(b'{"name": "d"}').decode(),
        header: f"sha-256=:{digest}:",
    }
    answer = tenant.call("POST", path, content=files.parquet(), headers=headers)
    assert_problem(answer, 422, "checksum_mismatch", scratch=tenant.scratch)


@pytest.mark.parametrize("path", ["/datasets", "/models", "/api-keys"])
def test_A9_content_encoding(tenant: Tenant, path: str) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    answer = tenant.call("POST", path, content=b"{}", headers=headers)
    assert_problem(answer, 415, "unsupported_content_encoding", scratch=tenant.scratch)


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/yaml", "application/json; charset=latin-1", ""]
)
def test_D7_wrong_content_type(tenant: Tenant, media_type: str) -> None:
    answer = tenant.call("POST", "/api-keys", content=body(), headers={"Content-Type": media_type})
    assert_problem(answer, 415, "unsupported_media_type")


def test_A10_wrong_content_type_of_an_upload(tenant: Tenant) -> None:
    answer = tenant.call("POST", "/models", content=b"x", headers={"Content-Type": "text/csv"})
    assert_problem(answer, 415, "unsupported_media_type", scratch=tenant.scratch)


def test_A22_long_path(tenant: Tenant) -> None:
    """The client itself refuses 64 KiB; ``test_server`` sends those."""
    assert_problem(tenant.get("/models/" + "a" * 20_000), 414, "uri_too_long")
    assert_problem(tenant.get("/models?after=" + "a" * 20_000), 414, "uri_too_long")


def test_A22_long_header(tenant: Tenant) -> None:
    answer = tenant.get("/models", X_Long="a" * 102_400)
    assert_problem(answer, 431, "request_header_fields_too_large")


MALFORMED = [
    "1",
    "mdl_",
    "mdl_01",
    "x" * 200,
    "mdl_" + "I" * 26,
    "mdl_%00",
    "%F0%9F%98%80",
    "..%2f",
]


@pytest.mark.parametrize("malformed", MALFORMED)
def test_A23_malformed_id(tenant: Tenant, malformed: str) -> None:
    unknown = tenant.get("/models/mdl_01JD0000000000000000000000").json()
    problem = assert_problem(tenant.get(f"/models/{malformed}"), 404, "not_found")
    for body in (unknown, problem):
        del body["request_id"], body["trace_id"], body["instance"]
    assert problem == unknown


@pytest.mark.parametrize("reference", ["0", "01", "-1", "1e3", "ver_1", "@", "@A B", "9" * 30])
def test_A23_malformed_version(tenant: Tenant, reference: str) -> None:
    model_id = tenant.ready_model()
    assert_problem(tenant.get(f"/models/{model_id}/versions/{reference}"), 404, "not_found")


def test_A24_range_with_1000_parts(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    parts = ",".join(f"{n}-{n}" for n in range(1000))
    answer = tenant.get(f"/models/{model_id}/versions/1/checkpoint", Range=f"bytes={parts}")
    assert_problem(answer, 416, "range_not_satisfiable")


def test_A28_wrong_method(tenant: Tenant) -> None:
    answer = tenant.call("PUT", "/models")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/models", "text/html"),
        ("/models", "application/octet-stream, image/*;q=0.5"),
        ("/models/{model_id}/versions/1/checkpoint", "application/json"),
    ],
)
def test_A28_wrong_accept(tenant: Tenant, path: str, accept: str) -> None:
    answer = tenant.get(path.format(model_id=tenant.ready_model()), Accept=accept)
    assert_problem(answer, 406, "not_acceptable")


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/models", "text/html, application/*;q=0.5"),
        ("/models", "*/*"),
        ("/models/{model_id}/versions/1/checkpoint", "application/octet-stream"),
    ],
)
def test_A28_right_accept(tenant: Tenant, path: str, accept: str) -> None:
    answer = tenant.get(path.format(model_id=tenant.ready_model()), Accept=accept)
    assert answer.status_code == 200


def test_A27_redis_down(tenant: Tenant, settings: Settings) -> None:
    """Neither the broker nor the counter of calls is needed to take a request in."""
    model_id = tenant.ready_model()
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
    down = settings.model_copy(update={"broker_url": url, "limits_url": url})
    session.configure(down)
    assert tenant.forget(model_id).status_code == 202
    assert tenant.http.get("/readyz").json()["status"] == "degraded"


def test_unknown_route(tenant: Tenant) -> None:
    assert_problem(tenant.get("/nothing/here"), 404, "not_found")


def test_unknown_query_parameter(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    for path in ("/models?limits=3", f"/models/{model_id}?verbose=1", "/unlearners?x"):
        assert_problem(tenant.get(path), 400, "unknown_parameter")


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "status=asleep", "model=1"])
def test_wrong_query_parameter(tenant: Tenant, query: str) -> None:
    assert_problem(tenant.get(f"/unlearn-requests?{query}"), 400, "invalid_parameter")


@pytest.mark.parametrize("hours", ["2", "2.0", "0.2e1"])
def test_a_whole_number_is_an_integer_however_it_is_written(tenant: Tenant, hours: str) -> None:
    (key,) = tenant.get("/api-keys").json()["data"]
    answer = tenant.call(
        "POST",
        f"/api-keys/{key['id']}/rotate",
        content=f'{{"overlap_hours": {hours}}}',
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 201, answer.text


def test_a_broken_number_is_no_integer(tenant: Tenant) -> None:
    (key,) = tenant.get("/api-keys").json()["data"]
    answer = tenant.call("POST", f"/api-keys/{key['id']}/rotate", json={"overlap_hours": 2.5})
    assert_problem(answer, 422, "validation_failed")


def test_only_methods_of_the_route_itself_are_allowed(tenant: Tenant) -> None:
    """Not those of ``/unlearners/{name}``, which the path fits, too."""
    answer = tenant.call("PUT", "/unlearners/recommend")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
