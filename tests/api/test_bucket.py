"""Uploads and downloads over a bucket."""

from __future__ import annotations

import pytest

from app.settings import Settings
from app.store import session
from app.store.blobs import blobs

from . import files
from .world import Tenant, assert_problem

CONTENT = files.weights()
pytestmark = pytest.mark.usefixtures("bucket")


def test_a_checkpoint_goes_up_and_comes_down(tenant: Tenant, settings: Settings) -> None:
    path = f"/models/{tenant.ready_model()}/versions/1/checkpoint"
    whole, part = tenant.get(path), tenant.get(path, Range="bytes=5-9")
    assert (whole.status_code, whole.content) == (200, CONTENT)
    assert (part.status_code, part.content) == (206, CONTENT[5:10])
    assert_problem(tenant.get(path, Range=f"bytes={len(CONTENT)}-"), 416, "range_not_satisfiable")
    assert tenant.get(path, If_None_Match=whole.headers["etag"]).status_code == 304
    assert not (settings.data_dir / "blobs").exists()
    assert list(tenant.scratch.iterdir()) == []
    for key, _ in blobs().keys():  # noqa: SIM118  # no dict
        assert key.startswith(f"{tenant.id}/uploads/")
        blobs().delete(key)
    assert_problem(tenant.get(path), 503, "storage_unavailable")


def test_a_refused_upload_leaves_nothing_in_the_bucket(tenant: Tenant) -> None:
    again = {"Idempotency_Key": "the same"}
    for _ in range(2):
        answer = tenant.upload("/datasets", files.parquet(), {"name": "d"}, **again)
        assert answer.status_code == 201
    assert len(list(blobs().keys())) == 1, "a replay keeps nothing"


def test_a_bucket_that_is_away_is_named(tenant: Tenant) -> None:
    away = {"blobs_endpoint": "http://127.0.0.1:9"}
    session.configure(Settings.model_validate(session.settings().model_dump() | away))
    ready = tenant.http.get("/readyz")
    assert (ready.status_code, ready.json()["storage"]) == (200, False)
    assert ready.json()["status"] == "degraded"
    answer = tenant.upload("/datasets", files.parquet(), {"name": "d"})
    assert_problem(answer, 503, "storage_unavailable", scratch=tenant.scratch)
    assert answer.headers["retry-after"] == "5"
    assert tenant.get("/datasets").json()["data"] == []
