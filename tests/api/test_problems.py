"""Errors that are not the caller's: 500, 503, 507; and what is on every answer."""

from __future__ import annotations

import errno
import re
import sqlite3
from collections.abc import Iterator
from unittest.mock import Mock

import pytest
from psycopg.errors import DiskFull
from sqlalchemy import event
from sqlalchemy.exc import InterfaceError, InternalError, NotSupportedError, OperationalError
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from app import bell
from app.api import problems, uploads
from app.settings import Settings
from app.store import models, session, tables
from app.store.blobs import blobs
from app.store.errors import Conflict, NotFound

from . import files
from .world import Tenant, assert_problem


def test_bug_is_logged_and_not_described(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the answer nor the log tells values: they may be somebody's."""

    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(models, "get", broken)
    with capture_logs() as logs:
        answer = tenant.get("/models/mdl_01JD0000000000000000000000")
    problem = assert_problem(answer, 500, "internal")
    assert "secret" not in answer.text
    entry, call = logs
    assert (entry["event"], entry["error"]) == ("unhandled_error", "RuntimeError")
    assert (call["event"], call["status"]) == ("call", 500)
    assert entry["request_id"] == problem["request_id"]
    assert re.search(r"test_problems.py:\d+ broken$", entry["stack"])
    assert "secret" not in str(logs)


def test_A26_database_down(tenant: Tenant, settings: Settings) -> None:
    session.configure(None)
    (settings.data_dir / "lethe.db").unlink()
    session.configure(settings)
    answer = tenant.get("/models")
    problem = assert_problem(answer, 503, "database_unavailable")
    assert answer.headers["retry-after"] == "5"
    assert problem["retryable"] is True


@pytest.fixture(params=[OperationalError, InterfaceError, InternalError, NotSupportedError])
def failing_commit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let every commit fail."""

    def fail(_: Session) -> None:
        raise request.param("commit", {}, Exception("gone"))

    event.listen(Session, "before_commit", fail)
    yield
    event.remove(Session, "before_commit", fail)


@pytest.fixture
def model_id(tenant: Tenant) -> str:
    return tenant.ready_model()


def test_no_answer_before_the_commit(tenant: Tenant, model_id: str, failing_commit: None) -> None:
    """A commit that fails must be seen by the caller, not after a 204 is on its way."""
    bell.nudged.clear()
    answer = tenant.call("DELETE", f"/models/{model_id}")
    problem = assert_problem(answer, 503, "database_unavailable")
    assert "nothing" not in problem["detail"], "the commit may have come through"
    assert_problem(tenant.forget(model_id), 503, "database_unavailable")
    assert not bell.nudged.is_set()


def sqlite_full() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


@pytest.mark.parametrize(
    "said", [sqlite_full(), DiskFull("could not extend file: No space left on device")]
)
def test_a_full_disk_of_the_database_is_named(
    tenant: Tenant, model_id: str, said: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Mock(side_effect=OperationalError("insert", {}, said))
    monkeypatch.setattr(Session, "commit", full)
    monkeypatch.setattr(Session, "flush", full)
    answer = tenant.forget(model_id)
    problem = assert_problem(answer, 503, "database_unavailable")
    assert problem["detail"] == "The database's disk is full."
    assert answer.headers["retry-after"] == "60"


def test_dispatcher_is_nudged_after_the_commit(tenant: Tenant) -> None:
    model_id = tenant.ready_model()
    bell.nudged.clear()
    tenant.forget(model_id, {"type": "record_ids", "record_ids": ["nobody"]})
    assert not bell.nudged.is_set()
    tenant.forget(model_id)
    assert bell.nudged.is_set()
    bell.nudged.clear()
    tenant.call("DELETE", f"/models/{model_id}")
    assert bell.nudged.is_set()


@pytest.mark.parametrize("path", ["/datasets", "/models"])
def test_A25_disk_full(tenant: Tenant, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(uploads.Sink, "_store", full)
    answer = tenant.upload(path, files.parquet(), {"name": "d"})
    assert_problem(answer, 507, "insufficient_storage", scratch=tenant.scratch)


def test_refused_row_takes_its_bytes_along(tenant: Tenant) -> None:
    dataset_id = tenant.ready_dataset(records=10)
    kept = [key for key, _ in files_kept()]
    answer = tenant.post_model(dataset_id=dataset_id, holdout="dst_01JD0000000000000000000000")
    assert_problem(answer, 404, "not_found", scratch=tenant.scratch)
    assert [key for key, _ in files_kept()] == kept


def files_kept() -> list[tuple[str, float]]:
    return sorted(blobs().keys())


def test_request_id(tenant: Tenant) -> None:
    assert tenant.get("/models", X_Request_Id="abc-1").headers["x-request-id"] == "abc-1"
    for bad in ("a b", "x" * 129, "a\tb"):
        made = tenant.get("/models", X_Request_Id=bad).headers["x-request-id"]
        assert made.startswith("rid_")
    first, second = (tenant.get("/models").headers["x-request-id"] for _ in range(2))
    assert first != second


def test_headers_of_every_answer(tenant: Tenant) -> None:
    for answer in (tenant.get("/models"), tenant.get("/nothing"), tenant.http.get("/models")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_documented_problems() -> None:
    found = problems.problems(NotFound, Conflict)
    assert set(found) == {"default", 404, 409}
    assert list(found[404]["content"]) == ["application/problem+json"]


def test_integrity_error_is_a_conflict(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database's own constraints refuse; the caller may try again."""
    model_id = tenant.ready_model()

    def twice(writer: Session, tenant_id: str, model_id: str) -> None:
        model = writer.get_one(tables.Model, (tenant_id, model_id))
        writer.add(
            tables.Version(
                tenant_id=tenant_id,
                id="ver_x",
                model_id=model.id,
                number=1,
                digest="0" * 64,
                size_bytes=1,
            )
        )
        writer.flush()

    monkeypatch.setattr(models, "delete", twice)
    answer = tenant.call("DELETE", f"/models/{model_id}")
    problem = assert_problem(answer, 409, "state_conflict")
    assert problem["retryable"] is True
