"""Shared by all rooms: one thread, so that tests are quick and reproducible on any machine."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import Pool, event

from app.settings import Settings
from app.store import session

pytest_plugins = ["tests.servers"]

torch.set_num_threads(1)


@event.listens_for(Pool, "checkout")
def _hurry(connection: Any, *_: object) -> None:
    """Have SQLite not wait for the disk: no machine crashes in the middle of a test."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture
def durable() -> Iterator[None]:
    """Have SQLite wait for the disk, as outside of tests."""
    event.remove(Pool, "checkout", _hurry)
    yield
    event.listen(Pool, "checkout", _hurry)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with every migration applied, to be copied."""
    folder = tmp_path_factory.mktemp("migrated")
    session.configure(Settings(data_dir=folder, database_url=""))
    session.upgrade()
    session.configure(None)
    return folder / "lethe.db"
