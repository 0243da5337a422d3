"""Every chaos test has a database of its own: what it checks is everything in there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.rig import Rig, running
from tests.servers import a_postgres

BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server that waits for the disk, as outside of tests."""
    with a_postgres(durable=True) as server:
        yield server


@pytest.fixture(params=BOTH)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """SQLAlchemy URL of an empty database, on each kind; SQLite's lies with the data."""
    if request.param == "sqlite":
        return f"sqlite+pysqlite:///{tmp_path / 'data' / 'lethe.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def rig(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[Rig]:
    with running(tmp_path, database_url, redis_url) as made:
        yield made


@pytest.fixture
def quick_rig(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[Rig]:
    with running(tmp_path, database_url, redis_url, quick=True) as made:
        yield made
