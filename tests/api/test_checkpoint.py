"""Downloads: ranges, conditions, digests, and what may not be downloaded."""

from __future__ import annotations

import base64
import hashlib

import pytest

from . import files
from .world import Tenant, assert_problem

CONTENT = files.weights()
SIZE = len(CONTENT)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def path(tenant: Tenant) -> str:
    return f"/models/{tenant.ready_model()}/versions/1/checkpoint"


def test_whole(tenant: Tenant, path: str) -> None:
    answer = tenant.get(path)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["etag"] == f'"{DIGEST}"'
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    digest = base64.b64encode(bytes.fromhex(DIGEST)).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"


def test_head(tenant: Tenant, path: str) -> None:
    got, head = tenant.get(path), tenant.call("HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    ours = ("x-request-id", "ratelimit")
    assert {k: v for k, v in head.headers.items() if k not in ours} == {
        k: v for k, v in got.headers.items() if k not in ours
    }


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("Bytes = 5-9", 5, 10),
        ("bytes=5-", 5, SIZE),
        ("bytes=-5", SIZE - 5, SIZE),
        (f"bytes=-{SIZE + 100}", 0, SIZE),
        (f"bytes=3-{10**18}", 3, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
    ],
)
def test_range(tenant: Tenant, path: str, asked: str, start: int, end: int) -> None:
    answer = tenant.get(path, Range=asked)
    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,3-4",
        f"bytes={SIZE}-",
        "bytes=5-4",
        "bytes=-0",
        "bytes=-",
        "bytes=a-b",
    ],
)
def test_range_refused(tenant: Tenant, path: str, asked: str) -> None:
    answer = tenant.get(path, Range=asked)
    assert_problem(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("asked", ["lines=0-1", "bytes 0-1", ""])
def test_unknown_unit_is_ignored(tenant: Tenant, path: str, asked: str) -> None:
    answer = tenant.get(path, Range=asked)
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize("tags", [f'"{DIGEST}"', f'"x", W/"{DIGEST}"', "*"])
def test_not_modified(tenant: Tenant, path: str, tags: str) -> None:
    answer = tenant.get(path, If_None_Match=tags, Range="bytes=0-1")
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == f'"{DIGEST}"'


def test_modified(tenant: Tenant, path: str) -> None:
    assert tenant.get(path, If_None_Match='"x"').status_code == 200


@pytest.mark.parametrize(("tag", "status"), [(f'"{DIGEST}"', 206), ('"x"', 200)])
def test_if_range(tenant: Tenant, path: str, tag: str, status: int) -> None:
    assert tenant.get(path, If_Range=tag, Range="bytes=0-1").status_code == status


def test_references(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    version_id = tenant.get(f"/models/{model_id}/versions/1").json()["id"]
    for reference in ("1", version_id, "@serving", "@latest"):
        assert tenant.get(f"/models/{model_id}/versions/{reference}").json()["number"] == 1
        answer = tenant.get(f"/models/{model_id}/versions/{reference}/checkpoint")
        assert answer.content == CONTENT
    for reference in ("2", "@other", "ver_01JD0000000000000000000000"):
        answer = tenant.get(f"/models/{model_id}/versions/{reference}/checkpoint")
        assert_problem(answer, 404, "not_found")


def test_validating(tenant: Tenant) -> None:
    answer = tenant.get(f"/models/{tenant.model()}/versions/1/checkpoint")
    assert_problem(answer, 409, "version_not_ready")
    assert "retry-after" in answer.headers


def test_rejected(tenant: Tenant) -> None:
    model_id = tenant.model()
    cause = {"code": "model_non_finite", "detail": "a weight is NaN"}
    tenant.set_version(model_id, status="rejected", rejection=cause)
    answer = tenant.get(f"/models/{model_id}/versions/1/checkpoint")
    assert "model_non_finite" in assert_problem(answer, 409, "version_not_accepted")["detail"]


def test_withdrawn(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    job_id = tenant.forget(model_id).json()["job_id"]
    tenant.publish(job_id, b"new weights")
    answer = tenant.get(f"/models/{model_id}/versions/1/checkpoint")
    assert_problem(answer, 410, "version_withdrawn")
    successor = f"/models/{model_id}/versions/2"
    assert answer.headers["link"] == f'<{successor}>; rel="successor-version"'
    old = tenant.get(f"/models/{model_id}/versions/1").json()
    assert old["links"]["successor"] == successor
    assert "checkpoint" not in old["links"]
    new = tenant.get(f"/models/{model_id}/versions/@serving/checkpoint")
    assert new.content == b"new weights"


def test_of_a_job(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    job_id = tenant.forget(model_id).json()["job_id"]
    assert "checkpoint" not in tenant.get(f"/jobs/{job_id}").json()["links"]
    assert_problem(tenant.get(f"/jobs/{job_id}/checkpoint"), 409, "version_not_accepted")
    tenant.publish(job_id, b"new weights")
    path = f"/models/{model_id}/versions/2/checkpoint"
    assert tenant.get(f"/jobs/{job_id}").json()["links"]["checkpoint"] == path
    answer = tenant.call("GET", f"/jobs/{job_id}/checkpoint", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, path)
    assert tenant.get(f"/jobs/{job_id}/checkpoint").content == b"new weights"


def test_deleted_model(tenant: Tenant, path: str) -> None:
    assert tenant.call("DELETE", path.partition("/versions")[0]).status_code == 204
    assert_problem(tenant.get(path), 410, "object_erased")


def test_bytes_that_are_away(tenant: Tenant, path: str) -> None:
    for file in (tenant.scratch.parent / "blobs").rglob("*"):
        if file.is_file():
            file.unlink()
    assert_problem(tenant.get(path), 503, "storage_unavailable")
