"""``POST /unlearners/recommend``: what would be tried, without trying it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from httpx2 import Response
from sqlalchemy import select, update

from app.settings import Settings
from app.store import session as sessions
from app.store import tables
from app.store.scopes import ROLES
from app.store.session import reading, transaction
from core.unlearners import unlearners

from .world import Tenant, assert_problem

CLASS = {"type": "class", "class": 1}


def ask(tenant: Tenant, model_id: str, forget: dict[str, Any] = CLASS, **more: Any) -> Response:
    body = {"model": model_id, "forget": forget, **more}
    return tenant.call("POST", "/unlearners/recommend", json=body)


def names(answer: Response) -> list[str]:
    return [candidate["unlearner"]["name"] for candidate in answer.json()["candidates"]]


def left_out(answer: Response) -> dict[str, str]:
    return {each["name"]: each["reason"] for each in answer.json()["left_out"]}


@pytest.fixture
def model_id(tenant: Tenant) -> str:
    return tenant.ready_model()


def test_every_registered_unlearner_is_spoken_of(tenant: Tenant, model_id: str) -> None:
    answer = ask(tenant, f"{model_id}@serving")
    assert answer.status_code == 200, answer.text
    assert sorted([*names(answer), *left_out(answer)]) == unlearners.names()
    assert all(left_out(answer).values())
    found = answer.json()
    assert found["counts"]["num_records"] == 5
    assert found["model"] == model_id
    first = found["candidates"][0]
    assert first["exact"] is True
    assert "over 25 % of the data" in first["reason"]
    assert found["budget"] == {
        "approximate_versions": 0,
        "share_forgotten": 0.0,
        "relative_change": 0.0,
        "utility_loss": 0.0,
        "spent": None,
    }


def test_what_is_recommended_is_accepted(tenant: Tenant, model_id: str) -> None:
    for candidate in ask(tenant, model_id).json()["candidates"]:
        answer = tenant.forget(model_id, CLASS, unlearner=candidate["unlearner"])
        assert answer.status_code == 202, answer.text


def test_nothing_is_stored(tenant: Tenant, model_id: str) -> None:
    tables_ = (tables.Request, tables.Job, tables.IdempotencyKey)
    before = [tenant.count(table) for table in tables_]
    assert ask(tenant, model_id).json() == ask(tenant, model_id).json()
    assert [tenant.count(table) for table in tables_] == before


def test_policies_cut_the_ladder(tenant: Tenant, model_id: str) -> None:
    assert len(names(ask(tenant, model_id, policy="fast"))) == 1
    exact = ask(tenant, model_id, policy="exact")
    assert all(candidate["exact"] for candidate in exact.json()["candidates"])
    assert "exact routes only" in left_out(exact)["ssd"]


def test_strict_names_the_audits_it_lacks(
    tenant: Tenant, model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.policies.registered", lambda kind: frozenset({"lira"}))
    problem = assert_problem(ask(tenant, model_id, policy="strict"), 422, "policy_unavailable")
    assert "relearn_time, linear_probe" in problem["detail"]
    names_ = frozenset({"rmia", "relearn_time", "linear_probe"})
    monkeypatch.setattr("core.policies.registered", lambda kind: names_)
    assert ask(tenant, model_id, policy="strict").status_code == 200


def test_without_recipe_and_holdout_only_a_closed_form_is_left(tenant: Tenant) -> None:
    answer = ask(tenant, tenant.ready_model(recipe=None, holdout=None))
    assert {*names(answer)} <= {"ridge_head"}
    assert "recipe" in left_out(answer)["retrain"]
    assert "holdout" in left_out(answer)["ssd"]


def test_the_time_budget_rests_on_the_preparation(tenant: Tenant, model_id: str) -> None:
    now = datetime.now(UTC)
    with transaction() as session:
        session.execute(
            update(tables.Job)
            .where(tables.Job.model_id == model_id)
            .values(started_at=now - timedelta(seconds=100), finished_at=now)
        )
    costs = {
        each["unlearner"]["name"]: each["seconds"]
        for each in ask(tenant, model_id).json()["candidates"]
    }
    assert costs["retrain"] == pytest.approx(50)
    answer = ask(tenant, model_id, time_budget_seconds=20)
    assert "about 50 s are expected" in left_out(answer)["retrain"]


def test_poison_is_another_purpose(tenant: Tenant, model_id: str) -> None:
    answer = ask(tenant, model_id, purpose="poison_removal")
    assert "ssd" in names(answer)
    assert "poison" in left_out(answer)["random_label"]


def test_what_is_forgotten_already_needs_nothing(tenant: Tenant, model_id: str) -> None:
    records = {"type": "record_ids", "record_ids": ["r0"]}
    tenant.publish(tenant.forget(model_id, records).json()["job_id"])
    answer = ask(tenant, model_id, records)
    assert names(answer) == []
    assert "nothing is left to forget" in left_out(answer)["retrain"]


@pytest.mark.parametrize("role", ["sre", "auditor"])
def test_who_cannot_ask_to_forget_learns_of_nobody(
    tenant: Tenant, model_id: str, role: str
) -> None:
    tenant.key = tenant.key_with(*ROLES[role])
    answer = ask(tenant, model_id, {"type": "subject", "subject_ref": "person-1"})
    assert_problem(answer, 403, "insufficient_scope")


def test_subjects_cannot_be_asked_after_without_end(
    tenant: Tenant, model_id: str, settings: Settings
) -> None:
    sessions.configure(settings.model_copy(update={"subject_lookups_per_minute": 2}))
    asked = [
        ask(tenant, model_id, {"type": "subject", "subject_ref": f"person-{number}"})
        for number in range(3)
    ]
    assert [answer.status_code for answer in asked[:2]] == [200, 200]
    assert_problem(asked[2], 429, "rate_limited")
    assert asked[2].headers["ratelimit-policy"] == '"lookup";q=2;w=60'
    assert ask(tenant, model_id).status_code == 200, "a class is no person"


def test_a_request_for_a_subject_is_a_question_as_well(
    tenant: Tenant, model_id: str, settings: Settings
) -> None:
    """Its answer has counts, and it can be cancelled."""
    sessions.configure(settings.model_copy(update={"subject_lookups_per_minute": 2}))
    subjects = [{"type": "subject", "subject_ref": f"person-{number}"} for number in range(3)]
    assert ask(tenant, model_id, subjects[0]).status_code == 200
    made = tenant.forget(model_id, subjects[1])
    assert (made.status_code, made.json()["counts"]["num_records"] > 0) == (202, True)
    refused = tenant.forget(model_id, subjects[2])
    assert_problem(refused, 429, "rate_limited")
    assert refused.headers["ratelimit-policy"] == '"lookup";q=2;w=60'
    assert tenant.count(tables.Request) == 1
    assert tenant.forget(model_id).status_code == 202, "record ids name no person"


def test_a_subject_is_not_kept(tenant: Tenant, model_id: str) -> None:
    answer = ask(tenant, model_id, {"type": "subject", "subject_ref": "person-1"})
    assert answer.json()["counts"]["num_records"] > 0
    assert "person-1" not in answer.text
    with reading() as session:
        kept = session.execute(select(tables.Request)).scalars().all()
    assert kept == []


@pytest.mark.parametrize(
    ("change", "code", "pointer"),
    [
        ({"policy": "hope"}, "validation_failed", "/policy"),
        ({"purpose": "fun"}, "validation_failed", "/purpose"),
        ({"time_budget_seconds": 0}, "validation_failed", "/time_budget_seconds"),
        ({"time_budget_seconds": 1e9}, "validation_failed", "/time_budget_seconds"),
        ({"forget": {"type": "class", "class": -1}}, "validation_failed", "/forget/class"),
        ({"forget": {"type": "class", "class": "bird"}}, "class_unknown", "/forget/class"),
        ({"unlearner": "auto"}, "unknown_field", "/unlearner"),
    ],
)
def test_bad_input(
    tenant: Tenant, model_id: str, change: dict[str, Any], code: str, pointer: str
) -> None:
    body = {"model": model_id, "forget": CLASS, **change}
    answer = tenant.call("POST", "/unlearners/recommend", json=body)
    problem = assert_problem(answer, 422, code)
    assert any(error["pointer"].startswith(pointer) for error in problem["errors"])


def test_a_foreign_model_reads_like_an_unknown_one(tenant: Tenant, other: Tenant) -> None:
    foreign = other.ready_model()
    assert_problem(ask(tenant, foreign), 404, "not_found")
    assert_problem(ask(tenant, f"{foreign}@other"), 404, "not_found")


def test_a_deleted_model_and_an_unread_dataset(tenant: Tenant, model_id: str) -> None:
    tenant.call("DELETE", f"/models/{model_id}")
    assert_problem(ask(tenant, model_id), 409, "model_not_active")
    waiting = tenant.model(dataset_id=tenant.dataset())
    assert_problem(ask(tenant, waiting), 409, "dataset_not_ready")
