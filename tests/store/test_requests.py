"""Receiving requests: what is resolved, refused, joined and completed at once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from app.store import datasets, jobs, models, requests
from app.store.errors import Conflict, NotFound, ServiceError, Unacceptable
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import World


@pytest.fixture
def model_id(sqlite_store: World) -> str:
    """Id of a ready model of ten training and four holdout records in two classes."""
    with transaction() as session:
        return factories.a_model(session, sqlite_store.tenant).id


def receive(store: World, model_id: str, **over: Any) -> requests.Request:
    with transaction() as session:
        return factories.a_request(session, store.tenant, model_id, **over)


def refusal(store: World, model_id: str, **over: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        receive(store, model_id, **over)
    return caught.value


def test_everything_is_counted(sqlite_store: World, model_id: str) -> None:
    ids = ["r0", "r0", "r1", "r12", "nobody"]
    made = receive(sqlite_store, model_id, record_ids=ids, ignore_missing=True)
    assert [*made.rows] == [0, 1]
    assert made.counts == {
        "num_records": 2,
        "num_duplicates": 1,
        "num_missing": 1,
        "num_holdout": 1,
        "num_already_applied": 0,
    }
    assert made.status == "queued"


def test_missing_ids_are_refused_by_number_only(sqlite_store: World, model_id: str) -> None:
    ids = ["r0", "secret-1", "secret-2", "with\x00nul", "half\ud800"]
    error = refusal(sqlite_store, model_id, record_ids=ids)
    assert (error.code, error.extra) == ("records_not_found", {"num_missing": 4})
    assert "secret" not in error.detail


@pytest.mark.postgres
def test_unstorable_ids_are_missing_on_postgres_too(store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, store.tenant)
    error = refusal(store, model.id, record_ids=["with\x00nul", "half\ud800"])
    assert error.code == "records_not_found"


def test_a_subject_means_all_its_records(sqlite_store: World, model_id: str) -> None:
    made = receive(sqlite_store, model_id, selector="subject", subject="s3")
    assert [*made.rows] == [6, 7]


@pytest.mark.parametrize(
    "wish",
    [
        {"selector": "subject", "subject": "never seen"},
        {"record_ids": ["r10", "r11"]},
        {"record_ids": ["nobody"], "ignore_missing": True},
    ],
)
def test_nothing_to_forget_completes_at_once(
    sqlite_store: World, model_id: str, wish: dict[str, Any]
) -> None:
    made = receive(sqlite_store, model_id, **wish)
    assert (made.status, made.outcome) == ("completed", "no_influence")
    with reading() as session:
        job = jobs.get(session, sqlite_store.tenant, made.job_id)
        serving = models.version(session, sqlite_store.tenant, model_id, "@serving")
        assert jobs.due(session) == []
    assert job.result is not None
    assert (job.status, job.result["outcome"]) == ("succeeded", "no_influence")
    assert job.result["version"] == serving.id


def test_forgotten_records_are_reported_not_repeated(sqlite_store: World, model_id: str) -> None:
    first = receive(sqlite_store, model_id, record_ids=["r0", "r1"])
    with transaction() as session:
        claim = jobs.claim(session, first.job_id, "w")
        assert claim is not None
        factories.publish(session, claim)
    again = receive(sqlite_store, model_id, record_ids=["r0", "r1"])
    assert (again.status, again.outcome) == ("completed", "no_influence")
    assert again.counts["num_already_applied"] == 2


@pytest.mark.parametrize(("wanted", "rows"), [(1, [1, 3]), ("b", [1, 3])])
def test_a_class_by_number_or_name(sqlite_store: World, wanted: Any, rows: list[int]) -> None:
    with transaction() as session:
        dataset = factories.a_dataset(
            session, sqlite_store.tenant, factories.index(4), class_names=["a", "b"]
        )
        model = factories.a_model(session, sqlite_store.tenant, dataset_id=dataset.id)
    made = receive(sqlite_store, model.id, selector="class", class_index=wanted)
    assert [*made.rows] == rows
    assert made.selector_class == 1


@pytest.mark.parametrize("wanted", [2, -1, "truck", True, None])
def test_an_unknown_class_is_refused(sqlite_store: World, model_id: str, wanted: Any) -> None:
    error = refusal(sqlite_store, model_id, selector="class", class_index=wanted)
    assert error.code == "class_unknown"


def test_a_name_that_two_classes_have_is_refused(sqlite_store: World) -> None:
    with transaction() as session:
        dataset = factories.a_dataset(session, sqlite_store.tenant, class_names=["a", "a"])
        model = factories.a_model(session, sqlite_store.tenant, dataset_id=dataset.id)
    error = refusal(sqlite_store, model.id, selector="class", class_index="a")
    assert error.code == "class_unknown"


def test_too_small_a_rest_is_refused(sqlite_store: World, model_id: str) -> None:
    nine = [f"r{row}" for row in range(9)]
    error = refusal(sqlite_store, model_id, record_ids=nine)
    assert error.code == "retain_set_too_small"
    receive(sqlite_store, model_id, record_ids=nine[:8])


def test_records_that_several_requests_name_are_gone_once(
    sqlite_store: World, model_id: str
) -> None:
    eight = [f"r{row}" for row in range(8)]
    receive(sqlite_store, model_id, record_ids=eight)
    receive(sqlite_store, model_id, record_ids=eight)
    assert refusal(sqlite_store, model_id, record_ids=["r8"]).code == "retain_set_too_small"


def test_the_rest_counts_what_was_accepted_before(sqlite_store: World, model_id: str) -> None:
    first = receive(sqlite_store, model_id, record_ids=[f"r{row}" for row in range(5)])
    rest = {"record_ids": [f"r{row}" for row in range(5, 10)]}
    assert refusal(sqlite_store, model_id, **rest).code == "retain_set_too_small"
    with transaction() as session:
        requests.cancel(session, sqlite_store.tenant, first.id)
    receive(sqlite_store, model_id, **rest)


def test_equal_requests_share_a_queued_job(sqlite_store: World, model_id: str) -> None:
    one = receive(sqlite_store, model_id, record_ids=["r0"])
    two = receive(sqlite_store, model_id, record_ids=["r1"])
    assert one.job_id == two.job_id
    with transaction() as session:
        claim = jobs.claim(session, one.job_id, "w")
        assert claim is not None
        assert {each: [*rows] for each, rows in claim.requests.items()} == {
            one.id: [0],
            two.id: [1],
        }
    late = receive(sqlite_store, model_id, record_ids=["r2"])
    assert late.job_id != one.job_id


@pytest.mark.parametrize(
    "other",
    [
        {"policy": "fast"},
        {"unlearner": {"name": "ssd"}},
        {"options": {"seed": 1}},
        {"selector": "class", "class_index": 0},
    ],
)
def test_unequal_requests_do_not_share(
    sqlite_store: World, model_id: str, other: dict[str, Any]
) -> None:
    one = receive(sqlite_store, model_id)
    assert receive(sqlite_store, model_id, **other).job_id != one.job_id


def test_the_clock_runs_one_calendar_month(sqlite_store: World, model_id: str) -> None:
    made = receive(sqlite_store, model_id, received_at=datetime(2026, 1, 31, 9, tzinfo=UTC))
    assert made.due_at == datetime(2026, 2, 28, 9, tzinfo=UTC)


def test_what_cannot_be_forgotten(
    sqlite_store: World, model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.policies.registered", lambda kind: frozenset())
    assert refusal(sqlite_store, model_id, policy="strict").code == "policy_unavailable"
    monkeypatch.undo()
    with pytest.raises(NotFound), transaction() as session:
        factories.a_request(session, sqlite_store.stranger, model_id)
    with transaction() as session:
        models.delete(session, sqlite_store.tenant, model_id)
    error = refusal(sqlite_store, model_id)
    assert isinstance(error, Conflict)
    assert error.code == "model_not_active"


@pytest.mark.parametrize(
    ("model", "wish", "code"),
    [
        ({"recipe": None}, {"policy": "exact"}, "recipe_missing"),
        ({"recipe": None, "holdout_dataset_id": None}, {}, "holdout_missing"),
    ],
)
def test_an_empty_ladder_is_refused(
    sqlite_store: World, model: dict[str, Any], wish: dict[str, Any], code: str
) -> None:
    with transaction() as session:
        made = factories.a_model(session, sqlite_store.tenant, **model)
    error = refusal(sqlite_store, made.id, **wish)
    assert isinstance(error, Unacceptable)
    assert error.code == code


def test_one_unlearner_needs_no_recipe(sqlite_store: World) -> None:
    with transaction() as session:
        model = factories.a_model(session, sqlite_store.tenant, recipe=None)
    made = receive(sqlite_store, model.id, unlearner={"name": "ssd"})
    assert made.status == "queued"


def test_an_unread_dataset_is_waited_for(sqlite_store: World) -> None:
    with transaction() as session:
        dataset, job_id = factories.a_raw_dataset(session, sqlite_store.tenant)
        model, _, _ = factories.a_raw_model(session, sqlite_store.tenant, dataset_id=dataset.id)
    error = refusal(sqlite_store, model.id)
    assert (error.code, "Retry-After" in error.headers) == ("dataset_not_ready", True)
    with transaction() as session:
        factories.ingest(session, job_id, factories.index())
    made = receive(sqlite_store, model.id)
    with reading() as session:
        job = jobs.get(session, sqlite_store.tenant, made.job_id)
        assert factories.waiting_on(session, job) == "model"
        assert made.job_id not in jobs.due(session)


@pytest.mark.parametrize("part", ["dataset_id", "holdout_dataset_id"])
def test_a_rejected_dataset_takes_its_models_along(sqlite_store: World, part: str) -> None:
    with transaction() as session:
        dataset, job_id = factories.a_raw_dataset(session, sqlite_store.tenant)
        there = {"dataset_id": factories.a_dataset(session, sqlite_store.tenant).id}
        over = there | {part: dataset.id}
        model, version, prepare_id = factories.a_raw_model(session, sqlite_store.tenant, **over)
    with transaction() as session:
        claim = jobs.claim(session, job_id, "w")
        assert claim is not None
        jobs.fail(session, claim, "dataset_empty", "no rows", False)
    with reading() as session:
        rejected = datasets.get(session, sqlite_store.tenant, dataset.id)
        version = models.version(session, sqlite_store.tenant, model.id, version.id)
        job = jobs.get(session, sqlite_store.tenant, prepare_id)
    assert rejected.rejection == {"code": "dataset_empty", "detail": "no rows"}
    assert (rejected.status, rejected.blob) == ("rejected", None)
    assert version.rejection is not None
    assert (version.status, version.rejection["code"]) == ("rejected", "upload_rejected")
    assert job.status == "failed"
    error = refusal(sqlite_store, model.id)
    assert error.code == "upload_rejected"
    assert "dataset_empty" in error.detail


def test_waiting_requests_learn_that_their_model_was_rejected(sqlite_store: World) -> None:
    with transaction() as session:
        model, _, prepare_id = factories.a_raw_model(session, sqlite_store.tenant)
        made = factories.a_request(session, sqlite_store.tenant, model.id)
    with transaction() as session:
        claim = jobs.claim(session, prepare_id, "w")
        assert claim is not None
        jobs.fail(session, claim, "model_non_finite", "NaN", False)
    with reading() as session:
        found = requests.get(session, sqlite_store.tenant, made.id)
        job = jobs.get(session, sqlite_store.tenant, made.job_id)
    assert found.problem is not None
    assert (found.status, found.problem["code"]) == ("needs_attention", "upload_rejected")
    assert job.status == "failed"
