"""Uploads whose reading or checking failed for no fault of theirs are kept for another try."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from app.store import datasets, jobs, models, tables, trash
from app.store import session as sessions
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World
from tests.store.test_retrying import fail, refusal, retry


def test_not_for_an_upload_that_was_found_unusable(store: World) -> None:
    with transaction() as session:
        _, job_id = factories.a_raw_dataset(session, store.tenant)
    fail(job_id)
    assert refusal(store, job_id) == "state_conflict"


@pytest.mark.parametrize("code", ["runner_died", "gpu_out_of_memory", "out_of_time"])
def test_a_dataset_that_is_not_to_blame_is_read_again(store: World, code: str) -> None:
    with transaction() as session:
        dataset, job_id = factories.a_raw_dataset(session, store.tenant)
        model, version, prepare = factories.a_raw_model(
            session, store.tenant, dataset_id=dataset.id
        )
    fail(job_id, code)
    with reading() as session:
        kept = session.get_one(tables.Dataset, (store.tenant, dataset.id))
        assert (kept.status, kept.rejection) == ("validating", {"code": code, "detail": "-"})
        assert jobs.get(session, store.tenant, prepare).status == "queued"
        assert kept.blob in trash.named(session)
        assert session.scalar(select(tables.Trash)) is None
    again = retry(store, job_id)
    assert refusal(store, job_id) == "state_conflict", "once is enough"
    with transaction() as session:
        factories.ingest(session, again.id, factories.index())
    with transaction() as session:
        factories.prepare(session, prepare)
    with reading() as session:
        read = session.get_one(tables.Dataset, (store.tenant, dataset.id))
        assert (read.status, read.rejection) == ("ready", None)
        assert models.version(session, store.tenant, model.id, version.id).status == "ready"


def test_weights_that_are_not_to_blame_are_measured_again(store: World) -> None:
    with transaction() as session:
        model, version, job_id = factories.a_raw_model(session, store.tenant)
        request = factories.a_request(session, store.tenant, model.id)
    first = job_id
    for _ in range(2):
        fail(job_id, "gpu_out_of_memory")
        with reading() as session:
            kept = models.version(session, store.tenant, model.id, version.id)
            assert (kept.status, kept.blob) == ("validating", version.blob)
            assert kept.rejection == {"code": "gpu_out_of_memory", "detail": "-"}
            waiting = jobs.get(session, store.tenant, request.job_id)
            assert factories.waiting_on(session, waiting) == "model"
        job_id = retry(store, job_id).id
    assert refusal(store, first) == "state_conflict"
    with transaction() as session:
        factories.prepare(session, job_id)
    with transaction() as session:
        assert models.version(session, store.tenant, model.id, version.id).rejection is None
        assert jobs.due(session) == [request.job_id]


def test_weights_whose_worker_was_lost_too_often_are_kept(store: World) -> None:
    sessions.configure(store.settings.model_copy(update={"max_lost_leases": 1}))
    with transaction() as session:
        model, version, job_id = factories.a_raw_model(session, store.tenant)
        assert jobs.claim(session, job_id, "w") is not None
        jobs.free_all(session)
    with reading() as session:
        kept = models.version(session, store.tenant, model.id, version.id)
        assert (kept.status, kept.blob) == ("validating", version.blob)
    assert retry(store, job_id).kind == "prepare"


def test_a_checkpoint_that_is_not_to_blame_is_converted_again(store: World) -> None:
    with transaction() as session:
        _, version, job_id = factories.a_raw_model(session, store.tenant, upload_format="pytorch")
    fail(job_id, "out_of_time")
    again = retry(store, job_id)
    assert (again.kind, again.version_id) == ("convert", version.id)
    with reading() as session:
        kept = session.get_one(tables.Version, (store.tenant, version.id))
        assert (kept.upload or {})["scan"] == "pending"


def test_what_is_kept_can_be_deleted_and_is_not_tried_again_then(store: World) -> None:
    with transaction() as session:
        dataset, ingest = factories.a_raw_dataset(session, store.tenant)
        model, version, prepare = factories.a_raw_model(session, store.tenant)
    fail(ingest, "internal")
    fail(prepare, "internal")
    with transaction() as session:
        datasets.delete(session, store.tenant, dataset.id)
        models.delete(session, store.tenant, model.id)
    assert refusal(store, ingest) == "state_conflict"
    assert refusal(store, prepare) == "model_not_active"
    with reading() as session:
        assert {dataset.blob, version.blob} <= {*session.scalars(select(tables.Trash.blob))}


def test_a_version_that_is_in_force_is_measured_again(store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        child = factories.published(session, store.tenant, model.id)
        chosen = select(tables.Job.id).where(tables.Job.version_id == child.id)
        job_id = session.scalars(chosen).one()
    fail(job_id, "runner_died")
    again = retry(store, job_id)
    assert (again.kind, again.version_id) == ("prepare", child.id)
