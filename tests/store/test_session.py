"""Transactions on both databases."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, func, select, text
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError, TimeoutError

from app.store import clock, tables
from app.store import session as sessions
from app.store.ids import new
from app.store.session import reading, transaction
from tests.store.conftest import World, settings_of

WRITERS, WRITES = 8, 25


def test_an_error_rolls_everything_back(store: World) -> None:
    with contextlib.suppress(RuntimeError), transaction() as session:
        session.add(tables.Tenant(id=new("ten"), name="gone"))
        session.flush()
        raise RuntimeError
    with reading() as session:
        assert session.scalar(select(tables.Tenant).where(tables.Tenant.name == "gone")) is None


def test_a_row_stays_readable_after_the_commit(store: World) -> None:
    with transaction() as session:
        tenant = tables.Tenant(id=new("ten"), name="kept")
        session.add(tenant)
    assert tenant.name == "kept"


def test_concurrent_writers_wait_for_each_other(store: World) -> None:
    """Each reads and then writes what it read: a lost update would lower the sum."""
    with transaction() as session:
        session.add(tables.Worker(id="w", kind="k", slots=0, seen_at=0.0))

    def add() -> None:
        for _ in range(WRITES):
            with transaction() as session:
                worker = session.get_one(tables.Worker, "w", with_for_update=True)
                worker.slots += 1

    with ThreadPoolExecutor(WRITERS) as pool:
        for done in [pool.submit(add) for _ in range(WRITERS)]:
            done.result()
    with reading() as session:
        assert session.get_one(tables.Worker, "w").slots == WRITERS * WRITES


@pytest.mark.usefixtures("durable")
def test_sqlite_is_durable_and_checks_references(sqlite_store: World) -> None:
    with reading() as session:
        pragmas = {
            name: session.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
    }


def test_a_writer_holds_sqlite_from_its_first_statement(sqlite_store: World) -> None:
    """BEGIN IMMEDIATE: a second writer cannot start, so no read can go stale before its write."""
    with transaction() as session:
        session.scalar(select(func.count()).select_from(tables.Tenant))
        with sessions.engine().connect() as other:
            other.exec_driver_sql("rollback")
            other.exec_driver_sql("PRAGMA busy_timeout=0")
            with pytest.raises(OperationalError, match="locked"):
                other.exec_driver_sql("BEGIN IMMEDIATE")
            other.exec_driver_sql("PRAGMA busy_timeout=30000")
            other.exec_driver_sql("BEGIN")


@pytest.mark.postgres
def test_a_server_that_vanished_is_given_up(migrated_postgres: str, tmp_path: Path) -> None:
    sessions.configure(settings_of(tmp_path, migrated_postgres))
    try:
        with sessions.engine().connect() as connection:
            told = connection.connection.dbapi_connection.info.get_parameters()  # type: ignore[union-attr]
    finally:
        sessions.configure(None)
    assert (told["keepalives_idle"], told["tcp_user_timeout"]) == ("10", "20000")


@pytest.mark.postgres
def test_postgres_reads_cannot_write_and_time_out(migrated_postgres: str, tmp_path: Path) -> None:
    sessions.configure(settings_of(tmp_path, migrated_postgres))
    try:
        with reading() as session:
            assert session.scalar(text("show statement_timeout")) == "1min"
            assert session.scalar(text("show idle_in_transaction_session_timeout")) == "1min"
            with pytest.raises(InternalError, match="read-only"):
                session.execute(text("delete from trash"))
    finally:
        sessions.configure(None)


def test_an_absent_database_is_an_operational_error(tmp_path: Path) -> None:
    sessions.configure(settings_of(tmp_path, "postgresql://postgres@127.0.0.1:1/none"))
    try:
        with pytest.raises(OperationalError):
            sessions.try_writing()
    finally:
        sessions.configure(None)


def test_a_database_is_tried_by_writing_and_nothing_stays(store: World) -> None:
    written: list[str] = []
    event.listen(sessions.engine(), "before_cursor_execute", lambda *a: written.append(a[2]))
    sessions.try_writing()
    assert any(statement.startswith("insert into workers") for statement in written)
    with reading() as session:
        assert session.scalars(select(tables.Worker)).all() == []


def test_a_database_that_only_reads_fails_the_try(store: World) -> None:
    only = {"postgresql": "set transaction read only", "sqlite": "PRAGMA query_only=1"}

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(only[connection.dialect.name])

    event.listen(sessions.engine(), "begin", begin)
    with pytest.raises(DBAPIError, match=r"read-?only"):
        sessions.try_writing()


@pytest.mark.postgres
def test_postgres_that_cannot_write_in_a_second_fails_the_try(
    migrated_postgres: str, tmp_path: Path
) -> None:
    sessions.configure(settings_of(tmp_path, migrated_postgres))
    try:
        with sessions.engine().begin() as holder:
            holder.execute(text("lock table workers in exclusive mode"))
            began = time.monotonic()
            with pytest.raises(OperationalError, match="timeout"):
                sessions.try_writing()
            assert time.monotonic() - began < 5
        sessions.try_writing()
    finally:
        sessions.configure(None)


@pytest.mark.parametrize("where", ["process", "file"])
def test_a_busy_sqlite_is_not_away_at_once(
    sqlite_store: World, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """While one writes nobody else can; that is no fault until it lasts longer than it may."""
    with contextlib.ExitStack() as held:
        if where == "process":
            held.enter_context(transaction()).execute(text("select 1"))
        else:
            other = held.enter_context(sessions.engine().connect())
            other.exec_driver_sql("rollback")
            other.exec_driver_sql("BEGIN IMMEDIATE")
        monkeypatch.setattr(sessions, "_written_at", time.monotonic())
        sessions.try_writing()
        monkeypatch.setattr(sessions, "_written_at", time.monotonic() - 31)
        with pytest.raises((OperationalError, TimeoutError)):
            sessions.try_writing()
    sessions.try_writing()
    with reading() as session:
        assert session.scalar(text("PRAGMA busy_timeout")) == 30_000


def test_the_clock_is_the_databases(store: World) -> None:
    with reading() as session:
        first = session.scalar(select(clock.now()))
        known = session.scalar(text(_EPOCH[session.get_bind().dialect.name]))
    assert first == pytest.approx(float(known), abs=5.0)


_EPOCH = {
    "sqlite": "select strftime('%s', 'now')",
    "postgresql": "select extract(epoch from now())",
}
