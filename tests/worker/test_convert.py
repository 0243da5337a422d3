"""Uploads of ``torch.save`` through the ledger and a real runner."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from app.settings import Settings
from app.store import admission, endings, jobs, keys, models
from app.store.blobs import blobs
from app.store.errors import Unacceptable
from app.store.session import reading, transaction
from app.store.tables import Dataset, Job, Version
from core.header import read_header
from tests import factories
from tests.core import checkpoints as made
from worker import garbage
from worker.jobs import run_job
from worker.station import Station


@pytest.fixture
def here(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Station]:
    station = Station()
    monkeypatch.setattr("worker.jobs.station", lambda: station)
    yield station
    station.close()


def upload(content: bytes) -> tuple[str, str]:
    """Register a model with this file; return its tenant and the id of its version."""
    folder = blobs().scratch()
    (folder / "upload").write_bytes(content)
    with transaction() as session:
        tenant = keys.ensure_tenant(session, "t").id
        key = f"{tenant}/uploads/1"
        blobs().adopt(folder / "upload", key)
        shutil.rmtree(folder)
        dataset = factories.a_dataset(session, tenant)
        _, version, _ = models.create(
            session,
            tenant,
            name="m",
            architecture=made.ARCHITECTURE,
            preprocessing={},
            recipe=None,
            dataset_id=dataset.id,
            holdout_dataset_id=None,
            digest="0" * 64,
            size_bytes=len(content),
            num_parameters=10,
            blob=key,
            meta={},
            upload_format="pytorch",
        )
        return tenant, version.id


def convert(version_id: str) -> tuple[Version, list[Job]]:
    """Run the job that converts it; return what became of it, and its jobs."""
    with reading() as session:
        job_id = session.scalars(select(Job.id).where(Job.version_id == version_id)).one()
        assert jobs.due(session) == [job_id]
    run_job(job_id)
    garbage.empty_trash()
    with reading() as session:
        version = session.scalars(select(Version).where(Version.id == version_id)).one()
        chosen = select(Job).where(Job.version_id == version_id).order_by(Job.id)
        return version, [*session.scalars(chosen)]


def test_a_checkpoint_is_converted_and_the_original_erased(here: Station) -> None:
    tenant, version_id = upload(made.saved({"model": made.state(), "epoch": 3}))
    version, (converted, prepare) = convert(version_id)
    assert converted.status == "succeeded", converted.error
    assert (prepare.kind, prepare.status) == ("prepare", "queued")
    assert version.upload is not None
    assert version.upload["scan"] == "passed"
    assert version.upload["unwrapped"] == ["model"]
    assert version.upload["sandbox"] == here.sandbox
    assert version.upload["digest"] == "sha256:" + "0" * 64
    assert version.digest != "0" * 64
    assert version.status == "validating"
    assert version.blob is not None
    assert read_header(blobs().path(version.blob)).tensors.keys() == made.state().keys()
    assert not blobs().exists(f"{tenant}/uploads/1")


def test_a_hostile_checkpoint_is_rejected_and_erased(here: Station, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    tenant, version_id = upload(made.saved(made.touching(canary)))
    version, (job,) = convert(version_id)
    assert version.status == "rejected", (job.status, job.error)
    assert version.upload is not None
    assert version.upload["scan"] == "refused"
    assert version.rejection is not None
    assert version.rejection["code"] == "unsafe_pickle_global"
    assert "posix.system" in version.rejection["detail"]
    assert job.error == version.rejection
    assert not canary.exists()
    assert list(blobs().keys()) == []
    assert job.sandbox is not None
    assert job.sandbox["level"] == here.sandbox
    with reading() as session, pytest.raises(Unacceptable) as refused:
        admission.usable(session, tenant, version.model_id, is_locked=False)
    assert refused.value.code == "upload_rejected"
    assert refused.value.extra["cause"] == version.rejection


@pytest.mark.slow  # a third start of a real runner
def test_C25_a_bomb_of_memory(here: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.limits.CONVERT_MEMORY", 16 << 20)
    upload_of_many = made.archive(b"\x80\x02](" + b"}" * 600_000 + b"e.")
    version, _ = convert(upload(upload_of_many)[1])
    assert version.rejection is not None
    assert version.rejection["code"] == "conversion_out_of_memory"


def test_a_model_whose_dataset_was_rejected_meanwhile(settings: Settings, tmp_path: Path) -> None:
    tenant, version_id = upload(made.saved(made.state()))
    with transaction() as session:
        job_id = session.scalars(select(Job.id).where(Job.version_id == version_id)).one()
        claim = jobs.claim(session, job_id, "w")
        assert claim is not None
        assert claim.dataset is not None
        dataset = session.get_one(Dataset, (tenant, claim.dataset.id))
        dataset.status, dataset.rejection = "rejected", endings.problem("dataset_empty", "none")
    with transaction() as session:
        jobs.finish_convert(
            session, claim, blob=f"{tenant}/b", digest="1" * 64, size_bytes=1, verdict={}
        )
    with reading() as session:
        version = session.get_one(Version, (tenant, version_id))
        assert version.rejection is not None
        assert version.rejection["code"] == "upload_rejected"
