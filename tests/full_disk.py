"""``python -m tests.full_disk SETTINGS``: what the service does on a disk of its own that is full.

Runs in a mount namespace of its own, mounts a small disk as the data folder, and fails loudly.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from fastapi.testclient import TestClient
from sqlalchemy import select, update

from app.main import build
from app.settings import Settings
from app.store import datasets, jobs, keys, tables
from app.store import session as sessions
from app.store.blobs import blobs
from app.store.session import reading, transaction
from tests.api import files
from tests.api.world import Tenant, assert_problem
from worker.jobs import run_job
from worker.station import Station

UPLOAD = b"ok" + b" " * 200_000
FILLER = "filler"


def fill(folder: Path) -> None:
    """Leave no room at all."""
    with (folder / FILLER).open("wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def kept() -> set[str]:
    return {key for key, _ in blobs().keys()}  # noqa: SIM118  # no dict


def uploads(tenant: Tenant, folder: Path) -> None:
    """Refuse an upload with 507 and leave nothing of it; take it once there is room."""
    before = kept()
    fill(folder)
    for path in ("/datasets", "/models"):
        answer = tenant.upload(path, files.parquet() * 100, {"name": "d"})
        body = assert_problem(answer, 507, "insufficient_storage")
        assert body["retryable"]
    assert [each.name for each in (folder / "scratch").iterdir()] == []
    assert kept() == before
    assert tenant.get("/datasets").json()["data"] == []
    ready = tenant.http.get("/readyz")
    print(ready.json())
    if not sessions.settings().blobs_url:
        assert (ready.json()["status"], ready.json()["storage"]) == ("degraded", False)
    (folder / FILLER).unlink()
    assert tenant.upload("/datasets", files.parquet(), {"name": "d"}).status_code == 201
    assert len(kept()) == len(before) + 1


def jobs_wait(tenant: Tenant, folder: Path) -> None:
    """Give a job back whose records find no room on the worker's disk; do it once there is room."""
    scratch = blobs().scratch()
    (scratch / "upload").write_bytes(UPLOAD)
    key = f"{tenant.id}/uploads/ok"
    blobs().adopt(scratch / "upload", key)
    scratch.rmdir()
    with transaction() as session:
        wanted = {"name": "d", "purpose": None, "class_names": None, "meta": {}, "blob": key}
        _, job = datasets.create(session, tenant.id, digest="0" * 64, size_bytes=1, **wanted)
        # A bell is rung for any job that is due: those of the uploads before are not.
        others = update(tables.Job).where(tables.Job.id != job.id)
        session.execute(others.values(run_after=1e12))
    station = Station(module="tests.worker.stand_in_ingest")
    before = kept()
    fill(folder)
    with mock.patch("worker.jobs.station", return_value=station):
        run_job(job.id)
        found = find(tenant, job.id)
        assert (found.status, found.attempts, found.runner_deaths) == ("queued", 0, 0), found.error
        assert [path for path in station.home.path.iterdir() if path.is_dir()] == []
        assert kept() == before
        (folder / FILLER).unlink()
        with transaction() as session:
            mine = update(tables.Job).where(tables.Job.id == job.id)
            session.execute(mine.values(run_after=0.0))
        run_job(job.id)
        assert find(tenant, job.id).status == "succeeded"
    station.close()


def find(tenant: Tenant, job_id: str) -> tables.Job:
    with reading() as session:
        return jobs.get(session, tenant.id, job_id)


def main() -> None:
    settings = Settings.model_validate_json(sys.argv[1])
    folder = settings.data_dir
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    sessions.configure(settings)
    sessions.upgrade()
    with transaction() as session:
        owner = keys.ensure_tenant(session, "t").id
        _, key = keys.create(session, owner, "k", keys.SCOPES, None)
    http = TestClient(build(dispatcher=False), raise_server_exceptions=False)
    tenant = Tenant(http, owner, key, folder / "scratch")
    uploads(tenant, folder)
    if settings.blobs_url:
        jobs_wait(tenant, folder)
    with reading() as session:
        named = session.scalars(select(tables.Dataset.blob)).all()
    assert len(named) == (2 if settings.blobs_url else 1)
    print("all is well", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
