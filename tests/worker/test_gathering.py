"""Audits, oracles and banks through the task: what the runner is told, and what is believed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from sqlalchemy import select, update
from structlog.testing import capture_logs

from app.settings import Settings
from app.store import audits, jobs, models, references, tables
from app.store.blobs import blobs, digest
from app.store.session import reading, transaction
from app.store.status import NEEDS, JobKind
from core.audit_job import audit
from core.bank_job import bank
from core.oracle_job import oracle
from tests import factories
from tests.worker.stand_in_gathering import CRASH, LIE, LINK, TRAIN
from worker import garbage, steps
from worker import jobs as worker_jobs
from worker.attempt import accompany
from worker.runner import core_work
from worker.station import Station

OPTIONS = {"seed": 5, "time_limit_seconds": 60.0}


@pytest.fixture
def here(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Station]:
    station = Station(module="tests.worker.stand_in_gathering")
    monkeypatch.setattr("worker.jobs.station", lambda: station)
    yield station
    station.close()


@pytest.fixture
def ids(settings: Settings) -> tuple[str, str]:
    """A tenant, and its model that has forgotten r0."""
    with transaction() as session:
        tenant = factories.a_tenant(session)
        model = factories.a_model(session, tenant)
        factories.published(session, tenant, model.id)
    return tenant, model.id


def done(tenant: str, job_id: str) -> tables.Job:
    """Do a job, whosever turn it is, and return it; every row has its bytes."""
    with reading() as session:
        factories.bytes_for_all(session)
    with transaction() as session:
        held = jobs.claim(session, job_id, "w")
    if held is not None:
        worker_jobs.do(held, worker_jobs.station())
    with reading() as session:
        return jobs.get(session, tenant, job_id)


def audited(tenant: str, model_id: str, **over: Any) -> tuple[tables.Job, dict[str, Any]]:
    """Audit the version in force; return the job and what the runner was told."""
    with transaction() as session:
        job_id = factories.an_audit(session, tenant, model_id, **over).id
    job = done(tenant, job_id)
    with reading() as session:
        report = audits.of_job(session, tenant, job_id)
    if report is None:
        return job, {}
    told: dict[str, Any] = json.loads(report.findings[0]["reason"])
    return job, told


def path_of(blob: str | None) -> str:
    assert blob is not None
    return f"file:{blobs().path(blob).stat().st_ino}"


def test_an_audit_is_told_what_to_compare(here: Station, ids: tuple[str, str]) -> None:
    tenant, model_id = ids
    with transaction() as session:
        oracle = factories.an_oracle(session, tenant, model_id)
        factories.a_bank(session, tenant, model_id)
    job, told = audited(tenant, model_id, seed=3, batch_size=32)
    with reading() as session:
        parent, version = models.versions(session, tenant, model_id)
        model = models.get(session, tenant, model_id)
        dataset = session.get_one(tables.Dataset, (tenant, model.dataset_id))
    assert job.status == "succeeded"
    assert told == {
        "weights": path_of(version.blob),
        "parent": path_of(parent.blob),
        "oracles": [path_of(oracle.blob)],
        "bank": None,
        "architecture": model.architecture,
        "preprocessing": {},
        "recipe": model.recipe,
        "dataset": path_of(dataset.blob),
        "holdout": path_of(dataset.blob),
        "split_key": model.split_key,
        "excluded": [],
        "forget_rows": [0],
        "selector": "records",
        "forget_classes": [],
        "audits": [{"name": "sanity"}],
        "seed": 3,
        "batch_size": 32,
        "time_limit_seconds": 600.0,
        "device": "auto",
    }
    assert told.keys() | {"out", "report"} == arguments(audit)


def test_a_waiting_request_is_held_against_the_bank(here: Station, ids: tuple[str, str]) -> None:
    tenant, model_id = ids
    with transaction() as session:
        blob = factories.a_bank(session, tenant, model_id)
        request = factories.a_request(session, tenant, model_id, record_ids=["r1", "r4"])
    _, told = audited(tenant, model_id, request=request.id)
    assert (told["bank"], told["parent"], told["oracles"]) == (path_of(blob), None, [])
    assert (told["forget_rows"], told["excluded"]) == ([1, 4], [0])


def test_an_oracle_is_kept_with_its_weights(here: Station, ids: tuple[str, str]) -> None:
    tenant, model_id = ids
    with transaction() as session:
        job_id = references.queue_oracle(session, tenant, model_id, "2", OPTIONS).id
    assert done(tenant, job_id).status == "succeeded"
    with reading() as session:
        serving = models.version(session, tenant, model_id, "@serving")
        (oracle_row,) = references.oracles(session, serving)
    assert oracle_row.blob is not None
    content = blobs().path(oracle_row.blob).read_bytes()
    told = json.loads(content)
    assert (told["excluded"], told["seed"], told["time_limit_seconds"]) == ([0], 5, 60.0)
    assert told.keys() | {"out", "report", "keeper"} == arguments(oracle)
    assert oracle_row.size_bytes == len(content)


def arguments(work: Any) -> set[str]:
    return set(work.__annotations__) - {"return"}


def test_a_bank_is_kept_on_the_model(here: Station, ids: tuple[str, str]) -> None:
    tenant, model_id = ids
    with transaction() as session:
        options = {"models": 6, "seed": 5, "batch_size": 16, "time_limit_seconds": 60.0}
        job_id = references.queue_bank(session, tenant, model_id, options).id
    assert done(tenant, job_id).result == {"models": 6}
    with reading() as session:
        model = models.get(session, tenant, model_id)
    assert (model.bank_models, model.bank_blob is not None) == (6, True)
    told = json.loads(blobs().path(str(model.bank_blob)).read_text())
    assert (told["excluded"], told["models"]) == ([0], 6)
    assert told.keys() | {"out", "report", "keeper"} == arguments(bank)


def test_a_runner_that_lies_or_dies_is_tried_again(here: Station, ids: tuple[str, str]) -> None:
    tenant, model_id = ids
    wanted = []
    with transaction() as session:
        for seed in (CRASH, LIE):
            wanted.append(factories.an_audit(session, tenant, model_id, seed=seed).id)
            options = OPTIONS | {"seed": seed}
            wanted.append(references.queue_oracle(session, tenant, model_id, "2", options).id)
    for job_id in wanted:
        job = done(tenant, job_id)
        assert (job.status, job.runner_deaths) == ("queued", 1)
    with reading() as session:
        assert session.scalars(select(tables.AuditReport)).all() == []
        oracles = select(tables.Version).where(tables.Version.role == "oracle")
        assert session.scalars(oracles).all() == []


@pytest.mark.parametrize("seed", [CRASH, LIE, LINK])
def test_a_bad_bank_is_not_kept(here: Station, ids: tuple[str, str], seed: int) -> None:
    tenant, model_id = ids
    with transaction() as session:
        options = {"models": 4, "seed": seed, "batch_size": 16}
        job_id = references.queue_bank(session, tenant, model_id, options).id
    for _ in range(3):
        done(tenant, job_id)
    job = done(tenant, job_id)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "runner_died"
    with reading() as session:
        assert models.get(session, tenant, model_id).bank_blob is None
    with transaction() as session:
        again = references.queue_bank(session, tenant, model_id, options)
    assert again.id != job_id


def test_the_runner_knows_every_kind() -> None:
    assert core_work().keys() == NEEDS.keys() == {*get_args(JobKind)}


def start_training(
    tenant: str,
    model_id: str,
    here: Station,
    monkeypatch: pytest.MonkeyPatch,
    kind: str = "oracle",
) -> tables.Job:
    """Train until the worker is asked to end; return the job that is left."""
    monkeypatch.setattr("worker.attempt.accompany.__kwdefaults__", DRAINED_AT_ONCE)
    options = {"seed": TRAIN, "time_limit_seconds": 60.0}
    with transaction() as session:
        if kind == "oracle":
            job_id = references.queue_oracle(session, tenant, model_id, "@serving", options).id
        else:
            options |= {"models": 4, "batch_size": 16}
            job_id = references.queue_bank(session, tenant, model_id, options).id
    ender = threading.Thread(target=end_once_training, args=(tenant, job_id, here))
    ender.start()
    job = done(tenant, job_id)
    ender.join()
    here.closing.clear()
    return job


DRAINED_AT_ONCE = {**(accompany.__kwdefaults__ or {}), "drain_seconds": 0.1}


def end_once_training(tenant: str, job_id: str, here: Station) -> None:
    while True:
        with reading() as session:
            if jobs.get(session, tenant, job_id).phase == "training":
                here.closing.set()
                return
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["oracle", pytest.param("bank", marks=pytest.mark.slow)])
def test_a_drained_training_goes_on_where_it_was(
    here: Station, ids: tuple[str, str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    tenant, model_id = ids
    job = start_training(tenant, model_id, here, monkeypatch, kind)
    assert (job.status, job.attempts) == ("queued", 0)
    assert job.checkpoint_blob is not None
    kept = blobs().path(job.checkpoint_blob)
    assert kept.is_file()
    garbage.collect()
    assert kept.is_file(), "a row names it"
    job = done(tenant, job.id)
    assert (job.status, job.checkpoint_blob, job.epoch) == ("succeeded", None, 2)
    garbage.empty_trash()
    assert not kept.exists(), "it is erased when the job ends"


def test_a_checkpoint_that_was_changed_is_not_used(
    here: Station, ids: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, model_id = ids
    job = start_training(tenant, model_id, here, monkeypatch)
    assert job.checkpoint_blob is not None
    with transaction() as session:
        held = jobs.claim(session, job.id, "w")
    assert held is not None
    assert steps.order(held, here.home.path)["checkpoints"]["found"] is not None
    blobs().path(job.checkpoint_blob).write_bytes(b"changed")
    assert steps.order(held, here.home.path)["checkpoints"]["found"] is None


@pytest.mark.parametrize(("limit", "first"), [(1e6, "retrain"), (50.0, "fine_tune")])
def test_the_ladder_knows_the_time_there_is(
    here: Station, ids: tuple[str, str], limit: float, first: str
) -> None:
    tenant, model_id = ids
    now = datetime.now(UTC)
    with transaction() as session:
        session.get_one(tables.Model, (tenant, model_id)).recipe = {"epochs": 100}
        prepared = update(tables.Job).where(tables.Job.kind == "prepare")
        session.execute(prepared.values(started_at=now - timedelta(seconds=2), finished_at=now))
        wish = {"record_ids": ["r1"], "options": {"time_limit_seconds": limit}}
        request = factories.a_request(session, tenant, model_id, **wish)
        factories.bytes_for_all(session)
    with transaction() as session:
        held = jobs.claim(session, request.job_id, "w")
    assert held is not None
    assert held.seconds_per_pass == pytest.approx(2.0)
    rungs = [rung["name"] for rung in steps.order(held, here.home.path)["arguments"]["ladder"]]
    assert (rungs[0], "retrain" in rungs) == (first, True)


def test_a_checkpoint_that_does_not_fit_is_said_in_the_log(
    here: Station, ids: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, model_id = ids
    job = start_training(tenant, model_id, here, monkeypatch)
    with transaction() as session:
        changed = session.get_one(tables.Job, (tenant, job.id))
        (path := here.home.path / "unfit").write_bytes(b"no tensors")
        changed.checkpoint_blob = f"{tenant}/jobs/{job.id}/unfit"
        changed.checkpoint_digest = digest(path)
        blobs().adopt(path, changed.checkpoint_blob)
        changed.options = OPTIONS
    with capture_logs() as logs:
        assert done(tenant, job.id).status == "succeeded"
    said = [(log["log_level"], log.get("reason")) for log in logs if "ignored" in log["event"]]
    assert said == [("warning", "unreadable")]
