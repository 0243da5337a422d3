"""The API over SQLite in a temporary folder, without a worker."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.main import build
from app.settings import Settings
from app.store import keys, session

from .world import Tenant

PEPPER = "a pepper for tests, not for anything else"


@pytest.fixture(scope="session")
def api() -> FastAPI:
    """The application, without dispatcher."""
    return build(dispatcher=False)


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> Iterator[Settings]:
    """Settings of a fresh service."""
    shutil.copy(migrated, tmp_path / "lethe.db")
    chosen = Settings(
        data_dir=tmp_path,
        database_url="",
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
