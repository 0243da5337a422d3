"""Engine, ``transaction()`` and ``reading()``: the only place where anything is committed."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError, TimeoutError
from sqlalchemy.orm import Session

from app.settings import Settings, get_settings

from . import isolation

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
BUSY_MILLISECONDS = 30_000
DISK_FULL = "53100"
"""Of PostgreSQL's SQLSTATE."""
PROBE_MILLISECONDS = 250
"""How long a look at the database waits for the writers before it, twice at most."""
POSTGRES_OPTIONS = (
    "-c statement_timeout=60s -c lock_timeout=20s -c idle_in_transaction_session_timeout=60s"
)
POSTGRES_PATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""Of libpq: a server that vanished without a word is given up within half a minute."""

_lock = threading.Lock()
_writers = threading.Lock()
_settings: Settings | None = None
_engine: Engine | None = None
_written_at = time.monotonic()
"""When SQLite was last seen to take a write; the start of the process to begin with."""
_PROBE = text("insert into workers (id, kind, slots, seen_at) values (:id, 'probe', 0, 0)")


def settings() -> Settings:
    """Return the settings the store works with: those of ``configure``, or the process's own."""
    return _settings or get_settings()


def configure(chosen: Settings | None) -> None:
    """Use ``chosen`` from now on (None: the process's own); connections made before are closed."""
    global _settings, _engine
    with _lock:
        if _engine is not None:
            _engine.dispose()
        _settings, _engine = chosen, None


def engine() -> Engine:
    """Return the engine of this process, made on first use."""
    global _engine
    with _lock:
        if _engine is None:
            _engine = _new_engine(settings().database, settings().database_tenant_role)
        return _engine


def write_session() -> Iterator[Session]:
    """Yield a session whose work is committed at the end, or rolled back if an error passes.

    Begins with the first statement. On SQLite its thread then waits until the writers before it
    have ended, so whoever holds the session may not need another thread to end it.
    """
    turn = _Turn()
    bind = engine().execution_options(lethe_begin="BEGIN IMMEDIATE", lethe_turn=turn)
    try:
        with Session(bind, expire_on_commit=False) as session, session.begin():
            yield session
    finally:
        turn.end()


def read_session() -> Iterator[Session]:
    """Yield a session that sees one state on SQLite and never writes."""
    bind = engine().execution_options(postgresql_readonly=True)
    with Session(bind, expire_on_commit=False, autoflush=False) as session:
        yield session


transaction = contextmanager(write_session)
reading = contextmanager(read_session)


def try_writing() -> None:
    """Write a row that is never committed; raise SQLAlchemyError if the database does not take it.

    PostgreSQL has a second for it. SQLite has one writer, and while others are at work that is
    proof enough, but not for longer than they may keep it.
    """
    if engine().dialect.name == "postgresql":
        with engine().connect() as connection:
            connection.execute(text("set local statement_timeout = 1000"))
            _write_nothing(connection)
        return
    global _written_at
    try:
        _try_sqlite()
    except (OperationalError, TimeoutError) as error:
        is_busy = isinstance(error, TimeoutError) or _code(error) == sqlite3.SQLITE_BUSY
        if not is_busy or time.monotonic() - _written_at > BUSY_MILLISECONDS / 1000:
            raise
    else:
        _written_at = time.monotonic()


def _write_nothing(connection: Connection) -> None:
    row = {"id": f"probe-{uuid4()}"}  # its own, so that no two wait for each other
    connection.execute(_PROBE, row)
    connection.rollback()


def _try_sqlite() -> None:
    turn = _Turn(PROBE_MILLISECONDS)
    bind = engine().execution_options(lethe_begin="BEGIN IMMEDIATE", lethe_turn=turn)
    try:
        with bind.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute(f"PRAGMA busy_timeout={PROBE_MILLISECONDS}")
            try:
                _write_nothing(connection)
            finally:
                driver.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")
    finally:
        turn.end()


def is_full(error: Exception) -> bool:
    """Whether it says that the database's disk has no room."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return state == DISK_FULL or _code(error) == sqlite3.SQLITE_FULL


def _code(error: Exception) -> int:
    """The primary code of an error of SQLite."""
    return getattr(getattr(error, "orig", None), "sqlite_errorcode", 0) & 0xFF


def at_head() -> bool:
    """Whether every migration has been applied, and perhaps those of the next release.

    A release works with the schema of the next one, so that the two can serve side by side.
    """
    heads, known = _migrations()
    with engine().connect() as connection:
        current = set(MigrationContext.configure(connection).get_current_heads())
    return current == heads or not current <= known


@cache
def _migrations() -> tuple[set[str], set[str]]:
    """The newest migrations of this release, and all of them; read from their files once."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    return set(scripts.get_heads()), {script.revision for script in scripts.walk_revisions()}


def revision() -> str | None:
    """Return the migration that was applied last."""
    with engine().connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(revision: str = "head") -> None:
    """Apply the migrations up to ``revision``, in this process."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, revision)


class _Turn:
    """The right of one SQLite writer to go ahead of the other writers of this process.

    SQLite's own waiting is a sleep between tries, in which latecomers overtake for seconds.
    """

    def __init__(self, milliseconds: int = BUSY_MILLISECONDS) -> None:
        self._taken = False
        self._milliseconds = milliseconds

    def take(self) -> None:
        """Wait for the turn, no longer than SQLite itself would."""
        if not _writers.acquire(timeout=self._milliseconds / 1000):
            raise TimeoutError("other writers held the database for too long")
        self._taken = True

    def end(self) -> None:
        """Let the next writer go, if the turn was ever taken."""
        if self._taken:
            self._taken = False
            _writers.release()


def _new_engine(url_text: str, tenant_role: str) -> Engine:
    url = make_url(url_text)
    if url.drivername in {"postgresql", "postgres"}:
        url = url.set(drivername="postgresql+psycopg")
    options: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 10, "max_overflow": 40}
    if url.get_backend_name() == "sqlite":
        return _new_sqlite(url.database, create_engine(url, **options))
    options["connect_args"] = {"options": POSTGRES_OPTIONS, **POSTGRES_PATIENCE}
    made = create_engine(url, **options)
    if tenant_role:
        event.listen(made, "begin", lambda connection: isolation.bind(connection, tenant_role))
    return made


def _new_sqlite(file: str | None, made: Engine) -> Engine:
    """Give SQLite the transactions the driver does not: BEGIN is ours, not the driver's guess."""
    if file and file != ":memory:":
        Path(file).parent.mkdir(parents=True, exist_ok=True)

    @event.listens_for(made, "connect")
    def _prepare(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None
        for pragma in (
            f"busy_timeout={BUSY_MILLISECONDS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            dbapi_connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if "lethe_turn" in options:
            options["lethe_turn"].take()
        connection.exec_driver_sql(options.get("lethe_begin", "BEGIN"))

    return made


def _forget_inherited() -> None:
    """Drop connections in a forked child without closing the parent's sockets."""
    global _lock, _writers
    _lock, _writers = threading.Lock(), threading.Lock()
    if _engine is not None:
        _engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_inherited)
