"""Taking back requests, jobs, models and datasets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from app.store import datasets, jobs, models, requests, trash
from app.store.errors import Conflict, NotFound
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World
from tests.store.test_indexing import drop_indexes


@pytest.fixture
def made(store: World) -> requests.Request:
    """A queued request."""
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        return factories.a_request(session, store.tenant, model.id)


def states(store: World, made: requests.Request) -> tuple[str, str]:
    with reading() as session:
        job = jobs.get(session, store.tenant, made.job_id)
        return requests.get(session, store.tenant, made.id).status, job.status


def claim(made: requests.Request) -> jobs.Claim:
    with transaction() as session:
        held = jobs.claim(session, made.job_id, "w")
    assert held is not None
    return held


def cancel_job(store: World, made: requests.Request) -> None:
    with transaction() as session:
        jobs.cancel(session, store.tenant, made.job_id)


def cancel_request(store: World, made: requests.Request) -> None:
    with transaction() as session:
        requests.cancel(session, store.tenant, made.id)


@pytest.mark.parametrize("cancel", [cancel_job, cancel_request])
def test_queued_work_is_cancelled_at_once(store: World, made: requests.Request, cancel) -> None:
    for _ in range(2):
        cancel(store, made)
        assert states(store, made) == ("cancelled", "cancelled")


def test_a_running_job_is_asked_to_stop(store: World, made: requests.Request) -> None:
    held = claim(made)
    for _ in range(2):
        cancel_job(store, made)
    assert states(store, made) == ("processing", "running")
    with transaction() as session:
        assert jobs.renew(session, held) == jobs.Renewal(alive=True, cancel=True)
        jobs.cancelled(session, held)
    assert states(store, made) == ("cancelled", "cancelled")


def test_a_result_in_time_beats_the_cancellation(store: World, made: requests.Request) -> None:
    held = claim(made)
    cancel_job(store, made)
    with transaction() as session:
        assert factories.publish(session, held) is not None
    assert states(store, made) == ("completed", "succeeded")


def test_a_request_taken_back_beats_the_result(store: World, made: requests.Request) -> None:
    held = claim(made)
    cancel_request(store, made)
    assert states(store, made) == ("cancelled", "running")
    with transaction() as session:
        assert factories.publish(session, held) is None
        assert any(key.endswith("e1/model.safetensors") for key in trash.pending(session))
    assert states(store, made) == ("cancelled", "cancelled")
    with reading() as session:
        assert len(models.versions(session, store.tenant, made.model_id)) == 1


@pytest.mark.parametrize(
    "leave",
    [
        lambda session, held: jobs.free_all(session),
        lambda session, held: jobs.fail(session, held, "runner_died", "-", True),
        jobs.release,
    ],
)
def test_a_job_that_was_to_be_cancelled_does_not_go_back(
    store: World, made: requests.Request, leave: Callable[[Session, jobs.Claim], object]
) -> None:
    held = claim(made)
    cancel_job(store, made)
    with transaction() as session:
        leave(session, held)
    assert states(store, made) == ("cancelled", "cancelled")


@pytest.mark.parametrize("cancel", [cancel_job, cancel_request])
def test_what_is_done_cannot_be_cancelled(store: World, made: requests.Request, cancel) -> None:
    held = claim(made)
    with transaction() as session:
        factories.publish(session, held)
    with pytest.raises(Conflict) as caught:
        cancel(store, made)
    assert caught.value.code == "state_conflict"
    assert states(store, made) == ("completed", "succeeded")


def test_a_shared_job_is_left_one_by_one(store: World, made: requests.Request) -> None:
    with transaction() as session:
        other = factories.a_request(session, store.tenant, made.model_id, record_ids=["r1"])
    with pytest.raises(Conflict) as caught:
        cancel_job(store, made)
    assert caught.value.code == "job_shared"
    cancel_request(store, made)
    assert states(store, made) == ("cancelled", "queued")
    assert [*claim(made).requests] == [other.id]


def test_leaving_a_shared_running_job_lets_it_go_on(store: World, made: requests.Request) -> None:
    with transaction() as session:
        other = factories.a_request(session, store.tenant, made.model_id, record_ids=["r1"])
    held = claim(made)
    cancel_request(store, made)
    with transaction() as session:
        assert not jobs.renew(session, held).cancel
        assert factories.publish(session, held) is not None
    assert states(store, made) == ("cancelled", "succeeded")
    assert states(store, other) == ("completed", "succeeded")


def test_a_request_that_needs_attention_can_be_taken_back(
    store: World, made: requests.Request
) -> None:
    held = claim(made)
    with transaction() as session:
        jobs.fail(session, held, "bad", "-", False)
    cancel_request(store, made)
    assert states(store, made) == ("cancelled", "failed")


def test_foreign_things_are_not_found(store: World, made: requests.Request) -> None:
    for verb in (
        lambda session: jobs.cancel(session, store.stranger, made.job_id),
        lambda session: requests.cancel(session, store.stranger, made.id),
        lambda session: models.delete(session, store.stranger, made.model_id),
        lambda session: models.version(session, store.stranger, made.model_id, 1),
    ):
        with pytest.raises(NotFound), transaction() as session:
            verb(session)


def test_deleting_a_model_ends_its_work(store: World, made: requests.Request) -> None:
    held = claim(made)
    with transaction() as session:
        waiting = factories.a_request(session, store.tenant, made.model_id, policy="fast")
        (version,) = models.versions(session, store.tenant, made.model_id)
        bytes_of_it = (str(version.blob), str(version.importance_blob))
    for _ in range(2):
        with transaction() as session:
            models.delete(session, store.tenant, made.model_id)
    assert states(store, made) == ("cancelled", "running")
    assert states(store, waiting) == ("cancelled", "cancelled")
    with transaction() as session:
        assert factories.publish(session, held) is None
        (version,) = models.versions(session, store.tenant, made.model_id)
        assert {*bytes_of_it} <= {*trash.pending(session)}
    assert (version.status, version.blob, version.importance_blob) == ("withdrawn", None, None)
    assert states(store, made) == ("cancelled", "cancelled")


def test_deleting_an_unprepared_model_cancels_everything(store: World) -> None:
    with transaction() as session:
        model, _, job_id = factories.a_raw_model(session, store.tenant)
        waiting = factories.a_request(session, store.tenant, model.id)
    with transaction() as session:
        models.delete(session, store.tenant, model.id)
        assert jobs.get(session, store.tenant, job_id).status == "cancelled"
    assert states(store, waiting) == ("cancelled", "cancelled")


def test_a_dataset_in_use_stays(store: World, made: requests.Request) -> None:
    with reading() as session:
        dataset_id = models.get(session, store.tenant, made.model_id).dataset_id
    with pytest.raises(Conflict) as caught, transaction() as session:
        datasets.delete(session, store.tenant, dataset_id)
    assert caught.value.code == "in_use"
    with transaction() as session:
        models.delete(session, store.tenant, made.model_id)
        blob = datasets.get(session, store.tenant, dataset_id).blob
        datasets.delete(session, store.tenant, dataset_id)
        deleted = datasets.delete(session, store.tenant, dataset_id)
        assert blob in trash.pending(session)
    drop_indexes()
    with reading() as session:
        found = datasets.rows_of_ids(session, store.tenant, dataset_id, ["r0"])
    assert (deleted.status, deleted.blob, found.num_missing) == ("deleted", None, 1)


def test_deleting_a_dataset_that_is_being_read(store: World) -> None:
    with transaction() as session:
        dataset, job_id = factories.a_raw_dataset(session, store.tenant)
    with transaction() as session:
        held = jobs.claim(session, job_id, "w")
        assert held is not None
    with transaction() as session:
        datasets.delete(session, store.tenant, dataset.id)
    with transaction() as session:
        assert jobs.renew(session, held).cancel
        result = {"num_train": 1, "num_holdout": 0, "num_classes": 1, "modality": "image"}
        assert not jobs.add_to_index(session, held, 0, factories.index())
        jobs.finish_ingest(session, held, result=result, blob="t/x")
        assert datasets.get(session, store.tenant, dataset.id).status == "deleted"
        assert jobs.get(session, store.tenant, job_id).status == "cancelled"
        assert "t/x" in trash.pending(session)
