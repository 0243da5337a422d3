"""Trying a failed job again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.store import jobs, models, references, requests, tables
from app.store import session as sessions
from app.store.errors import Conflict, NotFound, TooMany, Unacceptable
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World
from tests.store.test_samples import a_model, ask, some_samples


@pytest.fixture
def failed(store: World) -> tables.Request:
    """A request whose job failed."""
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        made = factories.a_request(session, store.tenant, model.id)
    fail(made.job_id)
    return made


def fail(job_id: str, code: str = "bad") -> None:
    with transaction() as session:
        held = jobs.claim(session, job_id, "w")
        assert held is not None
        jobs.fail(session, held, code, "-", False)


def retry(store: World, job_id: str) -> tables.Job:
    with transaction() as session:
        return jobs.retry(session, store.tenant, job_id)


def test_a_new_job_takes_the_requests_over(store: World, failed: tables.Request) -> None:
    again = retry(store, failed.job_id)
    with reading() as session:
        request = requests.get(session, store.tenant, failed.id)
        old = jobs.get(session, store.tenant, failed.job_id)
    assert (request.status, request.job_id, request.problem) == ("queued", again.id, None)
    assert request.outcome is None
    assert (old.status, old.error) == ("failed", {"code": "bad", "detail": "-"})
    assert (again.retry_of_id, again.options) == (old.id, old.options)
    assert (again.policy, again.unlearner) == (old.policy, old.unlearner)
    assert again.version_id is None, "the base is fixed at claim"
    with transaction() as session:
        assert jobs.due(session) == [again.id]
        held = jobs.claim(session, again.id, "w")
        assert held is not None
        assert factories.publish(session, held) is not None
    with reading() as session:
        assert requests.get(session, store.tenant, failed.id).status == "completed"


def test_a_new_job_is_as_urgent_and_is_joined_like_the_failed_one(store: World) -> None:
    asked = datetime.now(UTC) - timedelta(days=9)
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        urgent = {"priority": 1, "received_at": asked}
        made = factories.a_request(session, store.tenant, model.id, **urgent)
    fail(made.job_id)
    again = retry(store, made.job_id)
    assert (again.priority, again.due_at) == (1, made.due_at)
    with transaction() as session:
        other = factories.a_request(session, store.tenant, model.id, record_ids=["r1"])
    assert other.job_id == again.id


def test_records_that_came_along_are_there_for_the_new_job(store: World) -> None:
    model_id, samples = a_model(store), some_samples(store)
    first = ask(store, model_id, samples)
    fail(first.job_id)
    second = ask(store, model_id, samples)
    assert refusal(store, first.job_id) == "state_conflict", "one request for them at a time"
    with transaction() as session:
        requests.cancel(session, store.tenant, second.id)
    again = retry(store, first.job_id)
    with transaction() as session:
        held = jobs.claim(session, again.id, "w")
    assert held is not None
    assert held.samples is not None
    assert held.samples.id == samples


def refusal(store: World, job_id: str) -> str:
    with pytest.raises(Conflict) as caught:
        retry(store, job_id)
    return caught.value.code


def test_only_what_failed_and_is_waited_for(store: World, failed: tables.Request) -> None:
    again = retry(store, failed.job_id)
    assert refusal(store, failed.job_id) == "state_conflict"
    assert refusal(store, again.id) == "state_conflict"
    with pytest.raises(NotFound), transaction() as session:
        jobs.retry(session, store.stranger, failed.job_id)


def test_not_for_a_request_that_was_taken_back(store: World, failed: tables.Request) -> None:
    with transaction() as session:
        requests.cancel(session, store.tenant, failed.id)
    assert refusal(store, failed.job_id) == "state_conflict"


def test_not_for_a_deleted_model(store: World, failed: tables.Request) -> None:
    with transaction() as session:
        models.delete(session, store.tenant, failed.model_id)
    assert refusal(store, failed.job_id) == "model_not_active"


def test_not_for_a_rejected_model(store: World) -> None:
    """Its request came while the upload was still being checked; no job of it is ever due."""
    with transaction() as session:
        model, _, prepare = factories.a_raw_model(session, store.tenant)
        request = factories.a_request(session, store.tenant, model.id)
    fail(prepare)
    with pytest.raises(Unacceptable) as refusal:
        retry(store, request.job_id)
    assert (refusal.value.code, refusal.value.extra["cause"]["code"]) == ("upload_rejected", "bad")
    with reading() as session:
        found = requests.get(session, store.tenant, request.id)
        assert (found.status, found.job_id) == ("needs_attention", request.job_id)


def test_a_bank_is_not_trained_twice(store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        options = {"models": 4, "seed": 0, "batch_size": 256}
        job_id = references.queue_bank(session, store.tenant, model.id, options).id
    fail(job_id)
    with transaction() as session:
        factories.a_bank(session, store.tenant, model.id)
    assert refusal(store, job_id) == "reference_bank_exists"


def test_no_oracle_of_a_version_that_was_replaced(store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        factories.published(session, store.tenant, model.id)
        options = {"seed": 0, "time_limit_seconds": 600.0}
        queued = references.queue_oracle(session, store.tenant, model.id, "@serving", options)
    fail(queued.id)
    with transaction() as session:
        factories.published(session, store.tenant, model.id, record_ids=["r1"])
    assert refusal(store, queued.id) == "version_withdrawn"


def test_not_into_a_full_queue(store: World, failed: tables.Request) -> None:
    sessions.configure(store.settings.model_copy(update={"max_queued_jobs": 0}))
    with pytest.raises(TooMany), transaction() as session:
        jobs.retry(session, store.tenant, failed.job_id)


def test_what_was_learned_from_forgotten_records_goes(store: World) -> None:
    """Another job of the model publishes while one that was interrupted waits."""
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        waiting = factories.a_request(session, store.tenant, model.id, policy="exact")
        held = jobs.claim(session, waiting.job_id, "w")
        assert held is not None
        jobs.keep_checkpoint(session, held, blob="c", digest="c" * 64)
        jobs.release(session, held, delay=60.0)
        factories.published(session, store.tenant, model.id, record_ids=["r1"])
    with reading() as session:
        found = jobs.get(session, store.tenant, waiting.job_id)
        assert (found.status, found.checkpoint_blob, found.checkpoint_digest) == (
            "queued",
            None,
            None,
        )
        assert session.get(tables.Trash, "c") is not None


def test_an_audit_is_tried_again_one_at_a_time(store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        version = factories.published(session, store.tenant, model.id)
        job_id = factories.an_audit(session, store.tenant, model.id).id
    fail(job_id)
    again = retry(store, job_id)
    assert (again.kind, again.version_id) == ("audit", version.id)
    assert refusal(store, job_id) == "state_conflict"
    fail(again.id)
    assert retry(store, job_id).status == "queued"


def test_an_audit_of_an_older_version_is_tried_again_while_it_has_weights(store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        older = factories.published(session, store.tenant, model.id)
        job_id = factories.an_audit(session, store.tenant, model.id).id
        factories.published(session, store.tenant, model.id, record_ids=["r1"])
    fail(job_id)
    again = retry(store, job_id)
    assert again.version_id == older.id
    fail(again.id)
    with transaction() as session:
        session.get_one(tables.Version, (store.tenant, older.id)).blob = None
    assert refusal(store, job_id) == "version_withdrawn"


def test_the_state_of_a_training_goes_when_the_job_ends(store: World) -> None:
    """It outlives the attempt, is replaced by a later one, and ends with the job."""
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
        job_id = factories.a_request(session, store.tenant, model.id).job_id
        held = jobs.claim(session, job_id, "w")
        assert held is not None
        for name in ("a", "b"):
            jobs.keep_checkpoint(session, held, blob=name, digest=name * 64)
        jobs.release(session, held, held_for="storage_full", delay=60.0)
        found = jobs.get(session, store.tenant, job_id)
        assert (found.checkpoint_blob, found.checkpoint_digest) == ("b", "b" * 64)
        assert factories.waiting_on(session, found) == "storage_full"
        found.run_after = 0.0
        session.flush()
        held = jobs.claim(session, job_id, "w")
        assert held is not None
        assert held.job.checkpoint_blob == "b"
        jobs.fail(session, held, "bad", "-", False)
        found = jobs.get(session, store.tenant, job_id)
        assert (found.checkpoint_blob, found.checkpoint_digest) == (None, None)
        gone = {each.blob for each in session.query(tables.Trash)}
    assert {"a", "b"} <= gone


def test_a_zombie_keeps_no_checkpoint(store: World, failed: tables.Request) -> None:
    again = retry(store, failed.job_id)
    with transaction() as session:
        held = jobs.claim(session, again.id, "w")
        assert held is not None
        jobs.free_all(session)
    with pytest.raises(jobs.LeaseLost), transaction() as session:
        jobs.keep_checkpoint(session, held, blob="z", digest="z" * 64)
