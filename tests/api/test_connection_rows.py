"""Sources in registered buckets: what comes in, and every way in which it does not."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from httpx2 import Response
from obstore.store import S3Store

from app import logs
from app.connections import Connection
from app.settings import Settings
from app.store import session, tables
from tests import s3_front
from tests.s3_front import ACCESS_KEY, SECRET, Front
from tests.servers import BUCKET

from . import files
from .world import Tenant, assert_problem

CONTENT = files.parquet()
Connect = Callable[..., None]


@pytest.fixture(scope="module")
def front(s3_server: str) -> Iterator[Front]:
    stored = {
        "released/large": bytes(2**21 + 1),
        "other/records": CONTENT,
        "released-not/records": CONTENT,
    }
    for key, content in stored.items():
        store(s3_server, key, content)
    with s3_front.fronted(s3_server) as made:
        yield made


@pytest.fixture
def connect(tenant: Tenant, settings: Settings, front: Front) -> Connect:
    """Register the bucket for the tenant, with changes."""

    def register(**changes: Any) -> None:
        given = {
            "name": "research",
            "tenants": (tenant.id,),
            "bucket": BUCKET,
            "prefix": "released",
            "endpoint": front.url,
            "access_key": ACCESS_KEY,
            "secret_key": SECRET,
        }
        made = Connection.model_validate(given | changes)
        session.configure(settings.model_copy(update={"connections": (made,)}))
        front.asked.clear()

    register()
    return register


def bring(tenant: Tenant, url: str, **more: Any) -> Response:
    body = {"name": "d", "source": {"type": "url", "url": url}} | more
    return tenant.call("POST", "/datasets", json=body)


def store(address: str, key: str, content: bytes) -> None:
    bucket = S3Store(
        BUCKET,
        endpoint=address,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET,
        client_options={"allow_http": True},
    )
    obstore.put(bucket, key, content)


def put(address: str, key: str, content: bytes) -> str:
    store(address, f"released/{key}", content)
    return f"s3://research/released/{key}"


@pytest.mark.usefixtures("connect")
def test_an_object_comes_in(tenant: Tenant, s3_server: str) -> None:
    url = put(s3_server, "a+b=1@x.parquet", CONTENT)
    answer = bring(tenant, url, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert answer.status_code == 201, answer.text
    assert answer.json()["digest"] == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    assert list(tenant.scratch.iterdir()) == []


@pytest.mark.usefixtures("connect")
def test_a_model_comes_in_through_the_same_checks(tenant: Tenant, s3_server: str) -> None:
    metadata = tenant.metadata(tenant.ready_dataset())
    for name, content, status in (("good", files.weights(), 201), ("bad", b"PK\x03\x04", 422)):
        source = {"type": "url", "url": put(s3_server, name, content)}
        body = metadata | {"source": source, "format": "safetensors"}
        answer = tenant.call("POST", "/models", json=body)
        assert answer.status_code == status, answer.text


def test_the_machines_own_variables_do_not_mix_in(
    tenant: Tenant, connect: Connect, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(s3_server, "records", CONTENT)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    connect(region="eu-central-1")
    assert bring(tenant, url).status_code == 201


def test_without_a_key_the_machines_own_is_used(
    tenant: Tenant, connect: Connect, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(s3_server, "records", CONTENT)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    connect(access_key="", secret_key=None)
    assert bring(tenant, url).status_code == 201


def test_a_secret_from_a_file_is_read_anew(
    tenant: Tenant, connect: Connect, s3_server: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    connect(secret_key=None, secret_key_file=file)
    url = put(s3_server, "records", CONTENT)
    assert_problem(bring(tenant, url), 503, "source_unavailable", scratch=tenant.scratch)
    file.write_text("not it\n")
    assert_problem(bring(tenant, url), 503, "source_unavailable", scratch=tenant.scratch)
    file.write_text(f"{SECRET}\n")
    assert bring(tenant, url).status_code == 201


def test_a_connection_may_be_called_like_its_bucket(tenant: Tenant, connect: Connect) -> None:
    connect(name=BUCKET, bucket=None, prefix="", tenants=("*",))
    assert bring(tenant, f"s3://{BUCKET}/other/records").status_code == 201


ROWS = {
    "H14-unknown": ("s3://elsewhere/released/f", 422, "data_source_not_allowed", 0),
    "H14-the-bucket-itself": (f"s3://{BUCKET}/released/f", 422, "data_source_not_allowed", 0),
    "H14-key-outside": ("s3://research/other/records", 422, "data_source_not_allowed", 0),
    "H14-like-the-prefix": (
        "s3://research/released-not/records",
        422,
        "data_source_not_allowed",
        0,
    ),
    "H14-prefix-itself": ("s3://research/released", 422, "data_source_not_allowed", 0),
    "H15-upwards": ("s3://research/released/../other/records", 422, "url_invalid", 0),
    "H15-escape": ("s3://research/released/%2e%2e/other", 422, "url_invalid", 0),
    "H15-folder": ("s3://research/released/", 422, "url_invalid", 0),
    "H10-userinfo": ("s3://key:secret@research/released/f", 422, "url_invalid", 0),
    "H11-port": ("s3://research:22/released/f", 422, "url_invalid", 0),
    "query": ("s3://research/released/f?versionId=1", 422, "url_invalid", 0),
    "missing": ("s3://research/released/nothing", 422, "source_not_found", 1),
    "forbidden": ("s3://research/released/forbidden", 422, "source_forbidden", 1),
    "H9-redirect": ("s3://research/released/moved", 422, "source_redirected", 1),
    "H12-too-large": ("s3://research/released/large", 413, "payload_too_large", 1),
    "H13-broken": ("s3://research/released/broken", 503, "source_unavailable", 1),
    "ends-early": ("s3://research/released/short", 503, "source_unavailable", 1),
    "no-bucket": ("s3://research/released/away", 503, "source_unavailable", 1),
}


@pytest.mark.usefixtures("connect")
@pytest.mark.parametrize("row", ROWS)
def test_refused(tenant: Tenant, front: Front, row: str) -> None:
    url, status, code, asked = ROWS[row]
    answer = bring(tenant, url)
    assert_problem(answer, status, code, scratch=tenant.scratch)
    assert len(front.asked) == asked
    assert tenant.count(tables.Dataset) == 0


@pytest.mark.usefixtures("connect")
def test_other_bytes_than_were_announced(tenant: Tenant, s3_server: str) -> None:
    url = put(s3_server, "records", CONTENT)
    answer = bring(tenant, url, sha256="0" * 64)
    assert_problem(answer, 422, "checksum_mismatch", scratch=tenant.scratch)


def test_another_tenants_connection_is_not_there(
    tenant: Tenant, other: Tenant, connect: Connect, front: Front, s3_server: str
) -> None:
    url = put(s3_server, "records", CONTENT)
    foreign = bring(other, url).json()
    unknown = bring(other, url.replace("research", "elsewhere")).json()
    assert (foreign["code"], foreign["detail"]) == (unknown["code"], unknown["detail"])
    assert front.asked == []
    connect(tenants=(tenant.id, other.id))
    assert bring(other, url).status_code == 201


@pytest.mark.parametrize(
    "changes", [{"secret_key": "a wrong one"}, {"access_key": "AKIAOTHER"}], ids=["secret", "key"]
)
def test_what_the_store_holds_against_the_operator_is_no_callers_fault(
    tenant: Tenant, connect: Connect, s3_server: str, changes: dict[str, str]
) -> None:
    connect(**changes)
    url = put(s3_server, "records", CONTENT)
    problem = assert_problem(bring(tenant, url), 503, "source_unavailable", scratch=tenant.scratch)
    assert problem["retryable"]


def test_a_store_that_is_away(tenant: Tenant, connect: Connect) -> None:
    connect(endpoint="http://127.0.0.1:1")
    answer = bring(tenant, "s3://research/released/f")
    assert_problem(answer, 503, "source_unavailable", scratch=tenant.scratch)


def test_no_credential_leaves_its_place(
    tenant: Tenant, settings: Settings, connect: Connect
) -> None:
    written = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.configure(settings.model_copy(update={"log_level": "debug"}), written)
        told = [
            bring(tenant, f"s3://research/released/{key}").text
            for key in ("forbidden", "broken", "short", "moved", "nothing")
        ]
        connect(secret_key="a wrong one")
        told.append(bring(tenant, "s3://research/released/f").text)
    finally:
        root.handlers[:], level = before[0], before[1]
        root.setLevel(level)
    everything = written.getvalue() + "".join(told)
    assert '"cause": "AccessDenied"' in everything
    assert '"connection": "research"' in everything
    for secret in (SECRET, "a wrong one", ACCESS_KEY, "X-Amz", "127.0.0.1", BUCKET):
        assert secret not in everything, everything
