"""Every chaos test has a database of its own: what it checks is everything in there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.chaos.rig import Rig
from tests.servers import database


@pytest.fixture
def postgres_url(postgres_url: str) -> Iterator[str]:
    """SQLAlchemy URL of an empty database beside the session's."""
    server = make_url(postgres_url).set(drivername="postgresql", database="postgres")
    with database(
        server.render_as_string(hide_password=False), f"lethe_chaos_{uuid.uuid4().hex[:8]}"
    ) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def rig(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[Rig]:
    if request.param == "sqlite":
        url = f"sqlite+pysqlite:///{tmp_path / 'lethe.db'}"
    else:
        url = request.getfixturevalue("postgres_url")
    made = Rig(tmp_path, url, redis_url)
    yield made
    made.close()
