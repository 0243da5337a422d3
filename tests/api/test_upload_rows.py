"""Bad input, rows A of uploads that only a socket shows: lengths, breaks, slowness, two writers."""

from __future__ import annotations

import hashlib
import io
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tusclient.client import TusClient

from app.settings import Settings
from app.store import partial, session, tables

from .test_resumable import PIECE, begin, kept, offset_of, send
from .test_server import exchange, parsed, port, until  # noqa: F401  # a fixture
from .world import Tenant

DIRECT = {"Content-Type": "application/octet-stream", "X-Dataset-Metadata": "eyJuYW1lIjogImQifQ=="}


def head(tenant: Tenant, method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {tenant.key}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:  # noqa: F811  # the fixture's value
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        yield connection


def refused(port: int, sent: bytes, status: int, code: str) -> dict[str, str]:  # noqa: F811
    found, headers, body = exchange(port, [sent])
    assert (found, json.loads(body)["code"]) == (status, code), body
    assert headers["content-type"] == "application/problem+json"
    return headers


@pytest.fixture(params=["direct", "piece"])
def sending(request: pytest.FixtureRequest, tenant: Tenant) -> tuple[str, str, dict[str, str]]:
    """Method, path and headers of a call that brings a file, without its length."""
    if request.param == "direct":
        return "POST", "/datasets", DIRECT
    return "PATCH", begin(tenant, 2 * 2**20), PIECE | {"Upload-Offset": "0"}


def test_A1_no_length(tenant: Tenant, port: int) -> None:  # noqa: F811
    for media_type in ("application/octet-stream", "multipart/form-data; boundary=x"):
        headers = DIRECT | {"Content-Type": media_type, "Transfer-Encoding": "chunked"}
        headers |= {"Connection": "close"}
        sent = head(tenant, "POST", "/datasets", headers) + b"0\r\n\r\n"
        refused(port, sent, 411, "length_required")


def test_A1_a_piece_needs_no_length(tenant: Tenant, port: int) -> None:  # noqa: F811
    path = begin(tenant, 10)
    headers = PIECE | {"Upload-Offset": "0", "Transfer-Encoding": "chunked", "Connection": "close"}
    sent = head(tenant, "PATCH", path, headers) + b"5\r\n01234\r\n0\r\n\r\n"
    status, answered, _ = exchange(port, [sent])
    assert (status, answered["upload-offset"]) == (204, "5")


@pytest.mark.parametrize("expect", [{}, {"Expect": "100-continue"}], ids=["A2", "A3"])
def test_too_long_is_refused_before_the_body(
    tenant: Tenant,
    port: int,  # noqa: F811
    sending: tuple[str, str, dict[str, str]],
    expect: dict[str, str],
) -> None:
    """The body is never sent; a ``100 Continue`` would be the first status read."""
    method, path, headers = sending
    code = "payload_too_large" if method == "POST" else "upload_exceeds_declared_size"
    length = {"Content-Length": str(2 * 2**20 + 1), "Connection": "close"}
    refused(port, head(tenant, method, path, headers | length | expect), 413, code)


def test_A3_a_piece_that_fits_is_asked_for(tenant: Tenant, port: int) -> None:  # noqa: F811
    path = begin(tenant, 5)
    headers = PIECE | {"Upload-Offset": "0", "Content-Length": "5", "Expect": "100-continue"}
    with connected(port) as connection:
        connection.sendall(head(tenant, "PATCH", path, headers))
        assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"01234")
        assert connection.recv(1024).startswith(b"HTTP/1.1 204 ")


def test_A5_a_broken_call_goes_on(tenant: Tenant, port: int) -> None:  # noqa: F811
    content = bytes(range(256)) * 8192
    path = begin(tenant, len(content))
    file = partial.path(tenant.id, path.rpartition("/")[2])
    headers = PIECE | {"Upload-Offset": "0", "Content-Length": str(len(content))}
    with connected(port) as connection:
        connection.sendall(head(tenant, "PATCH", path, headers) + content[: 3 * 2**19])
        until(lambda: file.exists() and file.stat().st_size >= 2**20)

    def went_on() -> bool:
        offset = offset_of(tenant, path)
        done: bool = send(tenant, path, offset, content[offset:]).status_code == 204
        assert not done or 2**20 <= offset <= 3 * 2**19
        return done

    until(went_on)
    digest = hashlib.sha256(content).hexdigest()
    assert tenant.get(path).json()["digest"] == f"sha256:{digest}"


def test_A5_a_broken_piece_with_a_checksum_does_not_count(
    tenant: Tenant,
    port: int,  # noqa: F811
) -> None:
    path = begin(tenant, 2**20)
    checksum = {"Upload-Checksum": "sha1 " + "A" * 27 + "="}
    headers = PIECE | checksum | {"Upload-Offset": "0", "Content-Length": str(2**20)}
    with connected(port) as connection:
        connection.sendall(head(tenant, "PATCH", path, headers) + bytes(600_000))
        until(lambda: kept() != [])
        busy = send(tenant, path, 0, b"0")
        assert busy.json()["code"] == "upload_locked"
    until(lambda: send(tenant, path, 0, b"0").status_code == 204)
    assert offset_of(tenant, path) == 1


@pytest.mark.parametrize("checksums", [False, True])
def test_a_tus_client_gets_through(tenant: Tenant, port: int, checksums: bool) -> None:  # noqa: F811
    content = bytes(range(256)) * 1000
    client = TusClient(f"http://127.0.0.1:{port}/uploads", headers=tenant.headers())
    stream = io.BytesIO(content)
    first = client.uploader(
        file_stream=stream, chunk_size=100_000, upload_checksum=checksums, metadata={"a": "b"}
    )
    first.upload_chunk()
    second = client.uploader(
        file_stream=stream, url=first.url, chunk_size=100_000, upload_checksum=checksums
    )
    assert second.offset == 100_000
    second.upload()
    found = tenant.get(str(first.url).removeprefix(f"http://127.0.0.1:{port}")).json()
    digest = hashlib.sha256(content).hexdigest()
    assert (found["status"], found["digest"]) == ("received", f"sha256:{digest}")


def test_A8_two_writers(tenant: Tenant, port: int) -> None:  # noqa: F811
    path = begin(tenant, 10)
    headers = PIECE | {"Upload-Offset": "0", "Content-Length": "10"}
    with connected(port) as first:
        first.sendall(head(tenant, "PATCH", path, headers) + b"01234")
        until(lambda: kept() != [])
        until(lambda: send(tenant, path, 0, b"x").json()["code"] == "upload_locked")
        first.sendall(b"56789")
        assert first.recv(1024).startswith(b"HTTP/1.1 204 ")
    digest = hashlib.sha256(b"0123456789").hexdigest()
    assert tenant.get(path).json()["digest"] == f"sha256:{digest}"


def test_A11_too_slow(
    tenant: Tenant,
    port: int,  # noqa: F811
    settings: Settings,
    sending: tuple[str, str, dict[str, str]],
) -> None:
    session.configure(settings.model_copy(update={"upload_slow_seconds": 0.3}))
    method, path, headers = sending
    sent = head(tenant, method, path, headers | {"Content-Length": "1000"}) + b"slowly"
    answered = refused(port, sent, 408, "upload_too_slow")
    assert answered["connection"] == "close"
    assert not tenant.scratch.exists() or list(tenant.scratch.iterdir()) == []
    if method == "PATCH":
        assert offset_of(tenant, path) == len(b"slowly")
    else:
        assert tenant.count(tables.Dataset) == 0


def test_A11_json_that_is_too_slow(tenant: Tenant, port: int, settings: Settings) -> None:  # noqa: F811
    session.configure(settings.model_copy(update={"upload_slow_seconds": 0.3}))
    headers = {"Content-Type": "application/json", "Content-Length": "1000"}
    refused(port, head(tenant, "POST", "/api-keys", headers) + b"{", 408, "upload_too_slow")


def test_A11_slow_enough(tenant: Tenant, port: int, settings: Settings) -> None:  # noqa: F811
    """Each window brings what it must, however long the whole takes."""
    session.configure(settings.model_copy(update={"upload_slow_seconds": 1.0}))
    path = begin(tenant, 3 * 1024)
    headers = PIECE | {"Upload-Offset": "0", "Content-Length": str(3 * 1024)}
    with connected(port) as connection:
        connection.sendall(head(tenant, "PATCH", path, headers))
        for _ in range(3):
            connection.settimeout(0.5)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.sendall(bytes(1024))
        connection.settimeout(20)
        assert connection.recv(1024).startswith(b"HTTP/1.1 204 ")


LENGTHS: dict[str, str] = {
    "A12-negative": "Content-Length: -1",
    "A12-two": "Content-Length: 1\r\nContent-Length: 2",
    "A12-length-and-chunked": "Content-Length: 5\r\nTransfer-Encoding: chunked",
    "A12-chunked-and-length": "Transfer-Encoding: chunked\r\nContent-Length: 5",
}


@pytest.mark.parametrize("row", LENGTHS)
def test_A12_lengths(
    tenant: Tenant,
    port: int,  # noqa: F811
    sending: tuple[str, str, dict[str, str]],
    row: str,
) -> None:
    method, path, headers = sending
    start = head(tenant, method, path, headers)[: -len(b"\r\n")]
    sent = start + LENGTHS[row].encode() + b"\r\n\r\n" + b"0\r\n\r\n"
    answered: dict[str, Any] = refused(port, sent, 400, "malformed_request")
    assert answered["connection"] == "close"


def test_A13_json_over_the_limit(tenant: Tenant, port: int) -> None:  # noqa: F811
    headers = {"Content-Type": "application/json", "Content-Length": str(2**20 + 1)}
    for path in ("/models", "/datasets", f"{begin(tenant, 5)}/complete"):
        sent = head(tenant, "POST", path, headers | {"Connection": "close"})
        refused(port, sent, 413, "payload_too_large")
