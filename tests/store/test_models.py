"""Models, datasets and what ``prepare`` and ``ingest`` leave."""

from __future__ import annotations

from typing import Any

import pytest

from app.store import datasets, jobs, models, trash
from app.store.errors import Conflict, NotFound, Unacceptable
from app.store.keyed import subject_hash
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World

OVERLAPPING = [["r0", 0, "train", None], ["h1", 0, "train", None]]


def test_reading_a_dataset_makes_it_ready(store: World) -> None:
    with transaction() as session:
        dataset, job_id = factories.a_raw_dataset(session, store.tenant)
        upload = dataset.blob
    with transaction() as session:
        factories.ingest(session, job_id, factories.index(3, 2))
    with reading() as session:
        found = datasets.get(session, store.tenant, dataset.id)
        by_id = datasets.rows_of_ids(session, store.tenant, dataset.id, ["r4", "r1", "zz"])
        by_subject = datasets.rows_of_subject(session, store.tenant, dataset.id, "s1")
        by_class = datasets.rows_of_class(session, store.tenant, dataset.id, 0)
        job = jobs.get(session, store.tenant, job_id)
        assert upload in trash.pending(session)
    assert (found.status, found.num_train, found.num_holdout) == ("ready", 3, 2)
    assert found.blob != upload
    assert ([*by_id.rows], by_id.num_holdout, by_id.num_missing) == ([1], 1, 1)
    assert ([*by_subject.rows], by_subject.num_holdout) == ([2], 1)
    assert ([*by_class.rows], by_class.num_holdout) == ([0, 2], 0)
    assert job.status == "succeeded"


def test_many_ids_are_resolved(store: World) -> None:
    """More than one chunk, and more than a database takes as parameters."""
    rows = [[f"id-{row}", 0, "train", None] for row in range(40_000)]
    with transaction() as session:
        dataset = factories.a_dataset(session, store.tenant, rows)
    with reading() as session:
        ids = (row[0] for row in rows)
        found = datasets.rows_of_ids(session, store.tenant, dataset.id, ids)
    assert [*found.rows] == [*range(40_000)]


def test_a_version_by_number_id_and_alias(sqlite_store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, sqlite_store.tenant)
        refs: list[Any] = [1, "1", model.current_version_id, "@serving", "@latest"]
        found = {models.version(session, sqlite_store.tenant, model.id, ref).id for ref in refs}
        assert found == {model.current_version_id}
        for ref in (2, "0", "@next", "ver_x", "", "-1", "\u0661", "9" * 30):
            with pytest.raises(NotFound):
                models.version(session, sqlite_store.tenant, model.id, ref)


def test_a_holdout_that_was_trained_on_is_refused(store: World) -> None:
    with transaction() as session:
        train = factories.a_dataset(session, store.tenant)
        holdout = factories.a_dataset(session, store.tenant, OVERLAPPING)
    with pytest.raises(Unacceptable) as caught, transaction() as session:
        factories.a_raw_model(
            session, store.tenant, dataset_id=train.id, holdout_dataset_id=holdout.id
        )
    assert (caught.value.code, caught.value.extra) == ("holdout_overlap", {"num_overlapping": 1})


def test_an_overlap_that_shows_later_rejects_the_version(store: World) -> None:
    with transaction() as session:
        train = factories.a_dataset(session, store.tenant)
        holdout, job_id = factories.a_raw_dataset(session, store.tenant)
        model, _, prepare_id = factories.a_raw_model(
            session, store.tenant, dataset_id=train.id, holdout_dataset_id=holdout.id
        )
    with transaction() as session:
        factories.ingest(session, job_id, OVERLAPPING)
    with transaction() as session:
        assert jobs.claim(session, prepare_id, "w") is None
    with reading() as session:
        version = models.version(session, store.tenant, model.id, 1)
        assert jobs.get(session, store.tenant, prepare_id).status == "failed"
    assert version.rejection is not None
    assert (version.status, version.rejection["code"]) == ("rejected", "holdout_overlap")


def test_ids_of_a_separate_holdout_are_not_missing(sqlite_store: World) -> None:
    with transaction() as session:
        train = factories.a_dataset(session, sqlite_store.tenant)
        rows = [["h1", 0, "train", None], ["h2", 1, "train", None]]
        holdout = factories.a_dataset(session, sqlite_store.tenant, rows)
        model = factories.a_model(
            session, sqlite_store.tenant, dataset_id=train.id, holdout_dataset_id=holdout.id
        )
        made = factories.a_request(session, sqlite_store.tenant, model.id, record_ids=["r0", "h1"])
    assert (made.counts["num_holdout"], made.counts["num_missing"]) == (1, 0)


def test_datasets_that_cannot_be_used(sqlite_store: World) -> None:
    with transaction() as session:
        without = factories.a_dataset(session, sqlite_store.tenant, factories.index(4, 0))
        forget = factories.a_dataset(session, sqlite_store.tenant, purpose="forget")
        gone = factories.a_dataset(session, sqlite_store.tenant)
        datasets.delete(session, sqlite_store.tenant, gone.id)
        foreign = factories.a_dataset(session, sqlite_store.stranger)
    for dataset, error in (
        (without, Unacceptable),
        (forget, Conflict),
        (gone, NotFound),
        (foreign, NotFound),
    ):
        with pytest.raises(error), transaction() as session:
            factories.a_raw_model(session, sqlite_store.tenant, dataset_id=dataset.id)


def test_subjects_are_stored_hashed_per_tenant(sqlite_store: World) -> None:
    """No file of the database holds the raw reference, and equal ones differ between tenants."""
    with transaction() as session:
        for tenant in (sqlite_store.tenant, sqlite_store.stranger):
            factories.a_dataset(session, tenant, [["r0", 0, "train", "customer-4711"]])
    files = sqlite_store.settings.data_dir.glob("lethe.db*")
    assert not any(b"customer-4711" in file.read_bytes() for file in files)
    hashes = {
        subject_hash(tenant, "customer-4711")
        for tenant in (sqlite_store.tenant, sqlite_store.stranger)
    }
    assert len(hashes) == 2
