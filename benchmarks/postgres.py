"""A fresh PostgreSQL database for a measurement, dropped afterwards."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import make_url

SERVER = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"


def reachable(server: str) -> bool:
    """Whether a server answers at this URL."""
    try:
        psycopg.connect(_plain(server), connect_timeout=3).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """Make a fresh database for the time of the block; yield its URL."""
    name = f"lethe_bench_{secrets.token_hex(4)}"
    with psycopg.connect(_plain(server), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            url = make_url(server).set(database=name)
            yield url.render_as_string(hide_password=False)
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def _plain(url: str) -> str:
    """Return the URL as libpq reads it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
