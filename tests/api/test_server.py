"""The server around the application: what uvicorn refuses, over a real socket, and memory."""

from __future__ import annotations

import gc
import json
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.api.server import OPTIONS
from app.settings import Settings
from app.store.blobs import Folder
from app.store.homes import remove_leftovers
from tests.store.test_homes import leave

from .world import Tenant


@pytest.fixture
def port(api: FastAPI, settings: Settings) -> Iterator[int]:
    """Port of a running server."""
    server = uvicorn.Server(uvicorn.Config(api, port=0, lifespan="off", **OPTIONS))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


TAIL = b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
ROWS = {
    "A22-64-KiB-path": (b"GET /" + b"a" * 65_536 + TAIL + b"\r\n", 414, "uri_too_long"),
    "A22-1-MiB-path": (b"GET /" + b"a" * 2**20, 414, "uri_too_long"),
    "A22-100-KiB-header": (
        b"GET /models" + TAIL + b"X-Long: " + b"a" * 102_400 + b"\r\n\r\n",
        431,
        "request_header_fields_too_large",
    ),
    "A22-1-MiB-header": (
        b"GET /models" + TAIL + b"X-Long: " + b"a" * 2**20,
        431,
        "request_header_fields_too_large",
    ),
    "A12-no-http": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, "malformed_request"),
    "A12-negative-length": (
        b"POST /api-keys" + TAIL + b"Content-Length: -1\r\n\r\n",
        400,
        "malformed_request",
    ),
    "A12-length-and-chunks": (
        b"POST /api-keys" + TAIL + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n",
        400,
        "malformed_request",
    ),
    "A12-two-lengths": (
        b"POST /api-keys" + TAIL + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        400,
        "malformed_request",
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_refused(port: int, row: str) -> None:
    sent, status, code = ROWS[row]
    # In pieces, so that the limit on incomplete events is met before the end is there.
    pieces = [sent[start : start + 30_000] for start in range(0, len(sent), 30_000)]
    found, headers, body = exchange(port, pieces)
    assert found == status
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(body)
    assert (problem["code"], problem["status"]) == (code, status)
    assert problem["request_id"] == headers["x-request-id"]


def exchange(port: int, pieces: list[bytes]) -> tuple[int, dict[str, str], bytes]:
    """Send until the server has had enough."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.settimeout(20)
        answer = b""
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
        try:
            while chunk := connection.recv(65_536):
                answer += chunk
        except ConnectionResetError:
            assert answer
    return parsed(answer)


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(": ", 1) for line in lines)
    return int(status.split()[1]), {name.lower(): value for name, value in pairs}, body


def test_the_server_goes_on(port: int) -> None:
    for sent, _, _ in ROWS.values():
        exchange(port, [sent])
    status, _, body = exchange(port, [b"GET /healthz" + TAIL + b"\r\n"])
    assert (status, json.loads(body)) == (200, {"status": "ok"})


def test_upload_that_breaks_off_leaves_nothing(
    port: int, tenant: Tenant, settings: Settings
) -> None:
    head = (
        f"POST /datasets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant.key}\r\n"
        "Content-Type: application/octet-stream\r\nX-Dataset-Metadata: e30=\r\n"
        "Content-Length: 2000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head.encode() + bytes(1_500_000))
        until(lambda: any(tenant.scratch.glob("*/upload")))
        assert remove_leftovers(settings.data_dir) == 0, "it is on its way"
        assert len([*tenant.scratch.glob("*/home.lock")]) == 1, "nobody could tell if it were not"
    until(lambda: not any(tenant.scratch.iterdir()))


def test_a_killed_service_removes_its_uploads_when_it_starts(
    api: FastAPI, settings: Settings
) -> None:
    left = leave(Folder(settings.data_dir))
    with TestClient(api):
        assert not left.exists()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does; the test's own limit ends it."""
    while not condition():
        time.sleep(0.01)


MANY_THREADS = """
import ctypes, sys, threading
from fastapi.testclient import TestClient
from app.main import build
from app.settings import Settings
from app.store import session

libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
libc.malloc.restype = ctypes.c_void_p

def heaps():
    file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
    return open(sys.argv[2]).read().count("<heap nr=")

session.configure(Settings(data_dir=sys.argv[1], database_url=""))
session.upgrade()
with TestClient(build(dispatcher=False)):
    before = heaps()
    together = threading.Barrier(20)
    def take():
        together.wait()
        libc.malloc(100_000)
        together.wait()
    threads = [threading.Thread(target=take) for _ in range(20)]
    [each.start() for each in threads], [each.join() for each in threads]
    print(before, heaps())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of threads are glibc's")
def test_threads_share_one_heap(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY_THREADS, str(tmp_path), str(tmp_path / "heaps.xml")],
        check=True,
        capture_output=True,
        text=True,
    )
    before, after = done.stdout.split()
    assert before == after


def test_garbage_does_not_wait_for_a_share_of_what_was_frozen(
    api: FastAPI, settings: Settings
) -> None:
    imported: list[list[None]] = [[] for _ in range(1_000_000)]
    gc.collect()
    with TestClient(api):
        before = gc.get_stats()[2]["collections"]
        made: list[list[None]] = [[] for _ in range(150_000)]
        assert gc.get_stats()[2]["collections"] > before
    del imported, made
