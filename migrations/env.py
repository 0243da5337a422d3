"""Runs migrations on the database of the settings in force."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection, TypeDecorator

from app.store.isolation import protect
from app.store.session import engine
from app.store.tables import Base

LOCK_TIMEOUT = "5s"
"""A migration that cannot get its lock gives up, instead of queueing every reader behind it."""


def render_item(kind: str, item: Any, _context: object) -> str | Literal[False]:
    """Write our column types as the plain ones they are stored as: migrations outlive code."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False


def run() -> None:
    """Apply all steps in one transaction on a connection of the store's engine."""
    bind = engine().execution_options(lethe_begin="BEGIN IMMEDIATE")
    with bind.connect() as connection, unchecked_references(connection):
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=connection.dialect.name == "sqlite",
            render_item=render_item,
            transactional_ddl=True,
        )
        with context.begin_transaction():
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                # With its locks in hand, a step may take as long as the tables are large.
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            context.run_migrations()
            if connection.dialect.name == "postgresql":
                # Here and not in a step, so that no later table can be forgotten.
                protect(connection)
            if connection.dialect.name == "sqlite":
                refuse_broken_references(connection)


@contextmanager
def unchecked_references(connection: Connection) -> Iterator[None]:
    """Let SQLite copy tables that others refer to: it alters most things by making a new table.

    The switch works outside of transactions only, so the driver gets it before the first one.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def refuse_broken_references(connection: Connection) -> None:
    """Raise, and so roll back, if a row refers to nothing after all steps."""
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        raise RuntimeError(f"{len(broken)} rows of {broken[0][0]} refer to nothing")


if context.is_offline_mode():
    raise SystemExit("migrations run on a live database only")
run()
