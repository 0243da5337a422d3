"""Requests that bring their records: whose those are, and when they are erased."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

from app.store import datasets, jobs, models, requests, tables, trash
from app.store.errors import Conflict, NotFound, Unacceptable
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World
from tests.store.test_indexing import drop_indexes

HOLDOUT = [[f"h{row}", row % 2, "holdout", None] for row in range(4)]


def a_model(store: World, **over: Any) -> str:
    """Id of a prepared model whose training data stays elsewhere."""
    with transaction() as session:
        holdout = factories.a_dataset(session, store.tenant, HOLDOUT)
        wanted = {
            "dataset_id": None,
            "holdout_dataset_id": holdout.id,
            "recipe": None,
            "importance_blob": f"{store.tenant}/uploads/importance",
        }
        return factories.a_model(session, store.tenant, **(wanted | over)).id


def some_samples(store: World, rows: Any = None, **over: Any) -> str:
    """Id of a dataset sent to be forgotten."""
    with transaction() as session:
        wanted = {"purpose": "forget"} | over
        rows = factories.index(3, 0) if rows is None else rows
        return factories.a_dataset(session, store.tenant, rows, **wanted).id


def ask(store: World, model_id: str, samples: str, **over: Any) -> tables.Request:
    with transaction() as session:
        wanted = {"selector": "samples", "record_ids": None, "samples": samples}
        return factories.a_request(session, store.tenant, model_id, **(wanted | over))


def claim(request: tables.Request) -> jobs.Claim:
    with transaction() as session:
        held = jobs.claim(session, request.job_id, "w")
    assert held is not None
    return held


def is_erased(store: World, dataset_id: str) -> bool:
    """Whether row and bytes say the same about it, and its index once that is removed."""
    drop_indexes()
    with reading() as session:
        row = datasets.get(session, store.tenant, dataset_id)
        chosen = select(func.count()).where(tables.Record.dataset_id == dataset_id)
        indexed = session.scalar(chosen)
        thrown = any("records.parquet" in key for key in trash.pending(session))
    assert (row.blob is None) == (indexed == 0) == (row.status == "deleted") == thrown
    return thrown


def test_completed_requests_leave_nothing_but_a_row(store: World) -> None:
    model_id, samples = a_model(store), some_samples(store)
    request = ask(store, model_id, samples)
    held = claim(request)
    assert held.dataset is None
    assert held.samples is not None
    assert held.samples.id == samples
    assert held.requests[request.id].tolist() == [0, 1, 2]
    with transaction() as session:
        child = factories.publish(session, held, importance_blob="t/left")
    assert child is not None
    with reading() as session:
        version = session.get_one(tables.Version, (store.tenant, child.id))
        assert version.importance_blob == "t/left"
        assert not len(models.excluded_rows(session, store.tenant, model_id))
        assert models.earlier_requests(session, store.tenant, model_id) == {}
        assert requests.get(session, store.tenant, request.id).status == "completed"
        assert any("importance" in key for key in trash.pending(session)), "the parent's goes"
    assert is_erased(store, samples)
    # Rows of the next samples are rows of another file: none of them counts as forgotten.
    again = ask(store, model_id, some_samples(store))
    assert again.rows.tolist() == [0, 1, 2]


def test_a_class_is_a_class_in_the_job_too(store: World) -> None:
    model_id = a_model(store)
    samples = some_samples(store, [[f"r{row}", 1, "train", None] for row in range(3)])
    request = ask(store, model_id, samples, class_index=1)
    assert (request.selector, request.selector_class) == ("samples", 1)
    held = claim(request)
    assert (held.selector, held.forget_classes) == ("class", (1,))
    with pytest.raises(Unacceptable) as refusal:
        ask(store, model_id, some_samples(store), class_index=0)
    assert refusal.value.code == "class_mismatch"
    assert refusal.value.extra == {"num_others": 1}


def test_attention_keeps_them_for_another_try(store: World) -> None:
    model_id, samples = a_model(store), some_samples(store)
    first = ask(store, model_id, samples)
    held = claim(first)
    with transaction() as session:
        jobs.exhaust(session, held, code="ladder_exhausted", detail="x", rungs=[])
    assert not is_erased(store, samples)
    with pytest.raises(Conflict, match="request is to forget"), transaction() as session:
        datasets.delete(session, store.tenant, samples)
    second = ask(store, model_id, samples)
    with transaction() as session:
        requests.cancel(session, store.tenant, second.id)
    assert not is_erased(store, samples), "the first one still asks for them"
    third = ask(store, model_id, samples)
    with transaction() as session:
        requests.cancel(session, store.tenant, first.id)
    assert not is_erased(store, samples)
    with transaction() as session:
        assert requests.cancel(session, store.tenant, third.id).status == "cancelled"
    assert is_erased(store, samples)


def test_taking_one_back_erases_them_while_the_job_runs(store: World) -> None:
    model_id, samples = a_model(store), some_samples(store)
    request = ask(store, model_id, samples)
    held = claim(request)
    with transaction() as session:
        requests.cancel(session, store.tenant, request.id)
    assert is_erased(store, samples)
    with transaction() as session:
        assert factories.publish(session, held, importance_blob="t/left") is None
        assert "t/left" in trash.pending(session)


def test_cancelled_jobs_and_deleted_models_erase_them(store: World) -> None:
    model_id, samples = a_model(store), some_samples(store)
    request = ask(store, model_id, samples)
    with transaction() as session:
        jobs.cancel(session, store.tenant, request.job_id)
    assert is_erased(store, samples)


@pytest.mark.parametrize("state", ["queued", "processing", "needs_attention"])
def test_deleted_models_erase_what_came_for_them(sqlite_store: World, state: str) -> None:
    model_id, samples = a_model(sqlite_store), some_samples(sqlite_store)
    request = ask(sqlite_store, model_id, samples)
    if state != "queued":
        held = claim(request)
        if state == "needs_attention":
            with transaction() as session:
                jobs.exhaust(session, held, code="ladder_exhausted", detail="x", rungs=[])
    with transaction() as session:
        models.delete(session, sqlite_store.tenant, model_id)
    assert is_erased(sqlite_store, samples)


def test_one_open_request_for_each(store: World) -> None:
    model_id, samples = a_model(store), some_samples(store)
    first = ask(store, model_id, samples)
    with pytest.raises(Conflict) as refusal:
        ask(store, model_id, samples)
    assert refusal.value.code == "in_use"
    other = a_model(store)
    held = claim(first)
    with transaction() as session:
        jobs.exhaust(session, held, code="ladder_exhausted", detail="x", rungs=[])
    with pytest.raises(Conflict):
        ask(store, other, samples)
    ask(store, model_id, samples)
    again = update(tables.Request).where(tables.Request.id == first.id).values(status="queued")
    with pytest.raises(IntegrityError), transaction() as session:
        session.execute(again)


@pytest.fixture
def two(store: World) -> tuple[tables.Request, tables.Request]:
    """A request that needs attention, and one for the same samples that was published."""
    model_id, samples = a_model(store), some_samples(store)
    first = ask(store, model_id, samples)
    held = claim(first)
    with transaction() as session:
        jobs.exhaust(session, held, code="ladder_exhausted", detail="x", rungs=[])
    second = ask(store, model_id, samples)
    held = claim(second)
    with transaction() as session:
        assert factories.publish(session, held) is not None
    return first, second


def test_whoever_else_asked_for_them_owes_nothing_any_more(
    store: World, two: tuple[tables.Request, tables.Request]
) -> None:
    with reading() as session:
        first, second = (requests.get(session, store.tenant, each.id) for each in two)
    assert (first.status, first.outcome, first.problem) == ("completed", "no_influence", None)
    assert first.completed_at is not None
    assert first.applied_version_id is None
    assert (first.counts["num_records"], first.counts["num_already_applied"]) == (0, 3)
    assert not len(first.rows)
    assert (second.status, second.outcome) == ("completed", "erased_exact")
    assert second.counts["num_records"] == 3
    assert is_erased(store, str(second.samples_dataset_id))


def test_erased_samples_are_not_tried_again(
    store: World, two: tuple[tables.Request, tables.Request]
) -> None:
    stuck = update(tables.Request).where(tables.Request.id == two[0].id)
    with transaction() as session:
        session.execute(stuck.values(status="needs_attention", completed_at=None))
    with pytest.raises(Conflict, match="erased"), transaction() as session:
        jobs.retry(session, store.tenant, two[0].job_id)


def test_requests_do_not_share_a_job(sqlite_store: World) -> None:
    model_id = a_model(sqlite_store)
    one = ask(sqlite_store, model_id, some_samples(sqlite_store))
    two = ask(sqlite_store, model_id, some_samples(sqlite_store))
    assert one.job_id != two.job_id


@pytest.mark.parametrize(
    ("over", "rows", "code"),
    [
        ({"purpose": None}, None, "dataset_purpose_mismatch"),
        ({"purpose": "train"}, None, "dataset_purpose_mismatch"),
        ({}, HOLDOUT[:1], "forget_set_empty"),
        ({}, [["h0", 0, "train", None]], "holdout_overlap"),
    ],
)
def test_samples_that_cannot_be_meant(
    sqlite_store: World, over: dict[str, Any], rows: Any, code: str
) -> None:
    samples = some_samples(sqlite_store, rows, **over)
    with pytest.raises(Unacceptable) as refusal:
        ask(sqlite_store, a_model(sqlite_store), samples)
    assert refusal.value.code == code


def test_samples_that_are_gone_or_another_tenants(sqlite_store: World) -> None:
    model_id, samples = a_model(sqlite_store), some_samples(sqlite_store)
    with transaction() as session:
        stranger = factories.a_tenant(session, "other")
        theirs = factories.a_dataset(session, stranger, purpose="forget").id
        datasets.delete(session, sqlite_store.tenant, samples)
    for each in (samples, theirs, "dst_none"):
        with pytest.raises(NotFound):
            ask(sqlite_store, model_id, each)


def test_selectors_follow_from_where_the_data_is(sqlite_store: World) -> None:
    samples = some_samples(sqlite_store)
    with transaction() as session:
        ordinary = factories.a_model(session, sqlite_store.tenant).id
    with pytest.raises(Unacceptable) as refusal:
        ask(sqlite_store, ordinary, samples)
    assert refusal.value.code == "selector_not_applicable"
    for wish in (
        {"selector": "record_ids", "record_ids": ["r0"]},
        {"selector": "subject", "subject": "s0"},
        {"selector": "class", "class_index": 0},
    ):
        with pytest.raises(Unacceptable) as refusal, transaction() as session:
            factories.a_request(session, sqlite_store.tenant, a_model(sqlite_store), **wish)
        assert refusal.value.code == "selector_not_applicable"


def test_what_trains_again_needs_the_data(sqlite_store: World) -> None:
    model_id, samples = a_model(sqlite_store), some_samples(sqlite_store)
    with pytest.raises(Unacceptable) as refusal:
        ask(sqlite_store, model_id, samples, policy="exact")
    assert refusal.value.code == "dataset_missing"
    for make in (factories.an_oracle, factories.a_bank, factories.an_audit):
        with pytest.raises(Unacceptable) as refusal, transaction() as session:
            make(session, sqlite_store.tenant, model_id)
        assert refusal.value.code == "dataset_missing"


def test_either_dataset_or_importance(sqlite_store: World) -> None:
    with pytest.raises(Unacceptable) as refusal:
        a_model(sqlite_store, importance_blob=None)
    assert refusal.value.code == "dataset_missing"
    with pytest.raises(Unacceptable) as refusal, transaction() as session:
        factories.a_model(session, sqlite_store.tenant, importance_blob="t/importance")
    assert refusal.value.code == "importance_redundant"


def test_refused_importance_is_thrown_away(sqlite_store: World) -> None:
    with transaction() as session:
        wanted = {"dataset_id": None, "holdout_dataset_id": None, "importance_blob": "t/sent"}
        _, version, job_id = factories.a_raw_model(session, sqlite_store.tenant, **wanted)
        held = jobs.claim(session, job_id, "w")
        assert held is not None
        jobs.fail(session, held, "importance_mismatch", "other weights", retryable=False)
        session.refresh(version)
        assert version.rejection == {"code": "importance_mismatch", "detail": "other weights"}
        assert version.importance_blob is None
        assert "t/sent" in trash.pending(session)


def test_purpose_decides_about_the_job(sqlite_store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, sqlite_store.tenant)
        one = factories.a_request(session, sqlite_store.tenant, model.id)
        poison = {"record_ids": ["r1"], "purpose": "poison_removal"}
        two = factories.a_request(session, sqlite_store.tenant, model.id, **poison)
    assert (one.purpose, two.purpose) == ("erasure", "poison_removal")
    assert one.job_id != two.job_id
    assert claim(two).purpose == "poison_removal"
