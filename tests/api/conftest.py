"""The API over SQLite in a temporary folder, without a worker.

Bad input and the matrix of routes and keys are tried on PostgreSQL, too, marked ``slow``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.main import build
from app.settings import Settings
from app.store import keys, session
from tests.store.conftest import emptied, migrated_postgres  # noqa: F401  # fixtures

from .world import Tenant

PEPPER = "a pepper for tests, not for anything else"
ON_BOTH = re.compile(r"test_(\w+_rows|access_matrix)$")
"""Modules whose tests run on PostgreSQL, too."""


@pytest.fixture(scope="session")
def api() -> FastAPI:
    """The application, without dispatcher."""
    return build(dispatcher=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have a test on both databases if its module asks for it and it needs one."""
    if ON_BOTH.search(metafunc.module.__name__) and "settings" in metafunc.fixturenames:
        other = pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])
        metafunc.parametrize("settings", ["sqlite", other], indirect=True)


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a fresh service."""
    url = ""
    if getattr(request, "param", "sqlite") == "postgres":
        url = emptied(request.getfixturevalue("migrated_postgres"), tmp_path)
    else:
        shutil.copy(request.getfixturevalue("migrated"), tmp_path / "lethe.db")
    chosen = Settings(
        data_dir=tmp_path,
        database_url=url,
        broker_url="memory://",
        pepper=PEPPER,
        max_model_bytes=32 * 2**20,
        max_dataset_bytes=2 * 2**20,
    )
    session.configure(chosen)
    yield chosen
    session.configure(None)


@pytest.fixture
def bucket(settings: Settings, s3_settings: dict[str, object]) -> None:
    """Have the service keep its blobs in a bucket."""
    session.configure(Settings.model_validate(settings.model_dump() | s3_settings))


@pytest.fixture
def http(api: FastAPI, settings: Settings) -> TestClient:
    """A client whose server errors are answers."""
    return TestClient(api, raise_server_exceptions=False)


@pytest.fixture
def tenant(http: TestClient, settings: Settings) -> Tenant:
    """A tenant with every scope."""
    return make_tenant(http, settings, "acme")


@pytest.fixture
def other(http: TestClient, settings: Settings) -> Tenant:
    """Another tenant with every scope."""
    return make_tenant(http, settings, "rival")


def make_tenant(http: TestClient, settings: Settings, name: str) -> Tenant:
    """Make a tenant with a key for everything."""
    with session.transaction() as writer:
        owner = keys.ensure_tenant(writer, name)
        _, text = keys.create(writer, owner.id, "all", keys.SCOPES, None)
    return Tenant(http, owner.id, text, settings.data_dir / "scratch")
