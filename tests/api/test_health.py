"""Liveness and readiness."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import ASGITransport, AsyncClient, Response
from sqlalchemy import event
from starlette.concurrency import run_in_threadpool

from app.api import health
from app.settings import Settings
from app.store import session, tables, workers


def ready(http: TestClient) -> tuple[int, dict[str, object]]:
    answer = http.get("/readyz")
    return answer.status_code, answer.json()


def a_worker() -> None:
    with session.transaction() as writer:
        workers.seen(writer, "w1", "celery", 1, "L1")


def test_alive_without_a_database(http: TestClient, settings: Settings) -> None:
    session.configure(settings.model_copy(update={"database_url": "sqlite:////nowhere/at/all.db"}))
    assert http.get("/healthz").json() == {"status": "ok"}


def test_ready(http: TestClient) -> None:
    a_worker()
    status, body = ready(http)
    assert status == 200
    assert body == {
        "status": "ready",
        "database": True,
        "migrations": True,
        "storage": True,
        "clock": True,
        "broker": True,
        "workers": 1,
        "sandbox": "L1",
    }


def test_degraded_without_workers(http: TestClient) -> None:
    status, body = ready(http)
    assert (status, body["status"], body["workers"]) == (200, "degraded", 0)


def test_who_asks_often_costs_no_more(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ready(http)
    statements: list[str] = []
    event.listen(session.engine(), "before_cursor_execute", lambda *a: statements.append(a[2]))
    assert [ready(http) for _ in range(3)] == [first] * 3
    assert statements == []
    monkeypatch.setattr(health, "KEPT_SECONDS", -1.0)
    monkeypatch.setattr(health, "_kept", None)
    assert ready(http)[1]["workers"] == 0
    a_worker()
    assert ready(http)[1]["workers"] == 1


def test_who_waits_for_a_look_keeps_no_thread(
    api: FastAPI, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More callers than threads, and yet a thread is left for whoever ends their waiting."""
    looks, go_on = [], threading.Event()

    def look() -> health.Ready:
        looks.append(threading.get_ident())
        is_left = go_on.wait(5)
        go_on.set()
        assert is_left, "every thread waited"
        return found

    found = health._look()
    monkeypatch.setattr(health, "_look", look)

    async def ask() -> list[Response]:
        transport = ASGITransport(app=api, raise_app_exceptions=False)
        async with AsyncClient(transport=transport, base_url="http://lethe") as client:
            callers = [asyncio.create_task(client.get("/readyz")) for _ in range(60)]
            while not looks:
                await asyncio.sleep(0.01)
            await run_in_threadpool(go_on.set)
            return await asyncio.gather(*callers)

    answers = asyncio.run(ask())
    assert [answer.json() for answer in answers] == [found.model_dump()] * 60
    assert len(looks) == 1


def test_a_database_that_hangs_is_asked_once_and_given_a_second(
    http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = [], threading.Event()

    def hang() -> None:
        asked.append(threading.get_ident())
        assert go_on.wait(10)

    monkeypatch.setattr(session, "try_writing", hang)
    monkeypatch.setattr(health, "KEPT_SECONDS", -1.0)
    monkeypatch.setattr(health, "DATABASE_SECONDS", 0.2)
    try:
        found = [ready(http) for _ in range(3)]
    finally:
        go_on.set()
    assert [(status, body["database"]) for status, body in found] == [(503, False)] * 3
    health._asking.submit(int).result(10)
    assert len(asked) == 1
    assert ready(http)[0] == 200


def test_unavailable_before_migrations(http: TestClient) -> None:
    tables.Base.metadata.drop_all(session.engine())
    with session.engine().begin() as connection:
        connection.exec_driver_sql("drop table alembic_version")
    status, body = ready(http)
    assert (status, body["status"]) == (503, "unavailable")
    assert (body["database"], body["migrations"]) == (True, False)


def test_unavailable_without_a_database(http: TestClient, settings: Settings) -> None:
    broken = settings.data_dir / "lethe.db"
    session.configure(None)
    broken.write_bytes(b"this is no database, but long enough to look like one" * 100)
    session.configure(settings)
    status, body = ready(http)
    assert (status, body["status"], body["database"]) == (503, "unavailable", False)


@pytest.mark.parametrize("answers", [True, False])
def test_broker(http: TestClient, settings: Settings, answers: bool) -> None:
    """A broker that accepts and stays mute is not reachable."""
    a_worker()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        session.configure(settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{port}/0"}))
        thread = threading.Thread(target=serve, args=(server, answers))
        thread.start()
        status, body = ready(http)
        thread.join()
    assert status == 200
    assert (body["broker"], body["status"]) == (answers, "ready" if answers else "degraded")


def serve(server: socket.socket, answers: bool) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(100)
        if answers:
            connection.sendall(b"+PONG\r\n")
        with suppress(ConnectionResetError):
            connection.recv(100)


def test_a_broker_behind_tls_that_stays_mute_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert health.broker_answers(f"rediss://127.0.0.1:{port}/0") is False


def test_broker_that_is_away(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert health.broker_answers(f"redis://127.0.0.1:{port}/0") is False
