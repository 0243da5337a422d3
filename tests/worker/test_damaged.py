"""Bytes that are not what was stored: no job works on them, and whoever waits is told why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from app.settings import Settings
from app.store import blobs as storage
from app.store import jobs, models, requests, tables
from app.store.blobs import blobs
from app.store.session import reading, transaction
from tests import factories
from worker import jobs as worker_jobs
from worker.parcels import fetch, wanted
from worker.station import Station

CONTENT = b"as it was stored"


@pytest.fixture
def here(settings: Settings) -> Iterator[Station]:
    station = Station(module="tests.worker.stand_in_gathering")
    yield station
    station.close()


def put(key: str, content: bytes) -> None:
    folder = blobs().scratch()
    (folder / "file").write_bytes(content)
    blobs().adopt(folder / "file", key)


def attempt(job_id: str, here: Station) -> None:
    with transaction() as session:
        claim = jobs.claim(session, job_id, "w")
    assert claim is not None
    worker_jobs.do(claim, here)


@pytest.mark.parametrize("table", [tables.Version, tables.Dataset], ids=["weights", "records"])
def test_one_byte_that_changed_keeps_a_job_from_publishing(
    here: Station, table: type[tables.Version | tables.Dataset]
) -> None:
    with transaction() as session:
        tenant = factories.a_tenant(session)
        model = factories.a_model(session, tenant)
        request = factories.a_request(session, tenant, model.id, record_ids=["r0"])
        key = f"{tenant}/jobs/job_1/e1/{hashlib.sha256(CONTENT).hexdigest()}-file"
        session.execute(update(table).values(blob=key))
        factories.bytes_for_all(session)
    blobs().delete(key)
    put(key, CONTENT[:-1] + b"x")
    with capture_logs() as logs:
        for _ in range(3):
            attempt(request.job_id, here)
    assert [log["key"] for log in logs if log["event"] == "blob_damaged"] == [key] * 3
    with reading() as session:
        job = jobs.get(session, tenant, request.job_id)
        found = requests.get(session, tenant, request.id)
        assert models.get(session, tenant, model.id).current_version_id == model.current_version_id
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "blob_damaged"
    assert key not in job.error["detail"]
    assert (found.status, found.outcome) == ("needs_attention", "not_erased")
    assert found.problem == job.error
    with transaction() as session:
        again = jobs.retry(session, tenant, job.id)
        assert requests.get(session, tenant, request.id).status == "queued"
    assert again.status == "queued"


def test_a_file_that_is_asked_for_twice_is_read_once(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"t/{hashlib.sha256(CONTENT).hexdigest()}-records.parquet"
    put(key, CONTENT)
    read: list[Path] = []

    def noted(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(storage, "digest", noted)
    order: dict[str, Any] = {"dataset": wanted(key), "holdout": wanted(key), "oracles": []}
    told = fetch(order, tmp_path / "in")
    assert told["dataset"] == told["holdout"]
    assert len(read) == 1
