"""Bad input, rows F: deletion requests, idempotency, states."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from app.api import idempotency as edge
from app.settings import Settings
from app.store import jobs, session, tables
from app.store.session import reading, transaction
from core.findings import Rung
from core.verdicts import unmeasured
from tests import factories

from . import files
from .world import Tenant, assert_problem

RECORDS = {"type": "record_ids", "record_ids": ["r0"]}


@pytest.fixture
def model_id(tenant: Tenant) -> str:
    return tenant.ready_model()


def body(model_id: str) -> dict[str, Any]:
    return {"model": model_id, "forget": RECORDS}


def test_F1_no_key(tenant: Tenant, model_id: str) -> None:
    answer = tenant.call("POST", "/unlearn-requests", json=body(model_id))
    assert_problem(answer, 400, "idempotency_key_required")
    assert tenant.count(tables.Request) == 0


def test_F2_replay(tenant: Tenant, model_id: str) -> None:
    first = tenant.forget(model_id, key="one")
    again = tenant.forget(model_id, key="one")
    assert first.status_code == again.status_code == 202
    assert first.json() == again.json()
    assert first.headers["location"] == again.headers["location"]
    assert first.headers["retry-after"] == again.headers["retry-after"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert tenant.count(tables.Request) == 1


def test_F2_replay_of_the_same_body_in_other_words(tenant: Tenant, model_id: str) -> None:
    first = tenant.forget(model_id, key="one")
    forget = '{"record_ids": ["r\\u0030"], "type": "record_ids"}'
    raw = f' {{"forget": {forget}, "model": "{model_id}"}}'
    headers = {"Idempotency-Key": "one", "Content-Type": "application/json"}
    again = tenant.call("POST", "/unlearn-requests", content=raw.encode(), headers=headers)
    assert again.json() == first.json()


def test_F3_same_key_other_body(tenant: Tenant, model_id: str) -> None:
    tenant.forget(model_id, key="one")
    answer = tenant.forget(model_id, {"type": "record_ids", "record_ids": ["r1"]}, key="one")
    assert_problem(answer, 422, "idempotency_key_reused")
    assert tenant.count(tables.Request) == 1


def test_F4_same_key_while_the_first_is_at_work(
    tenant: Tenant, model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: list[Any] = []
    settle = edge.Once.settle

    def slow(self: edge.Once, *arguments: Any) -> Any:
        if not inner:
            inner.append(None)
            inner[0] = tenant.forget(model_id, key="one")
        return settle(self, *arguments)

    monkeypatch.setattr(edge.Once, "settle", slow)
    assert tenant.forget(model_id, key="one").status_code == 202
    problem = assert_problem(inner[0], 409, "idempotency_in_progress")
    assert inner[0].headers["retry-after"] == "1"
    assert problem["retryable"] is True


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "caf\u00e9".encode("latin-1"), "a\x7f"])
def test_F5_key_invalid(tenant: Tenant, model_id: str, key: str | bytes) -> None:
    headers = {"Idempotency-Key": key}
    answer = tenant.call("POST", "/unlearn-requests", json=body(model_id), headers=headers)
    assert_problem(answer, 400, "idempotency_key_invalid")


def test_F6_same_key_of_another_tenant(tenant: Tenant, other: Tenant, model_id: str) -> None:
    mine = tenant.forget(model_id, key="one")
    theirs = other.forget(other.ready_model(), key="one")
    assert (mine.status_code, theirs.status_code) == (202, 202)
    assert mine.json()["id"] != theirs.json()["id"]
    assert "idempotency-replayed" not in theirs.headers


def test_F6_same_key_of_another_principal(tenant: Tenant, model_id: str) -> None:
    mine = tenant.forget(model_id, key="one")
    tenant.key = tenant.key_with("requests:create")
    theirs = tenant.forget(model_id, key="one")
    assert mine.json()["id"] != theirs.json()["id"]


def test_F7_50_identical_posts(tenant: Tenant, model_id: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = [*pool.map(lambda _: tenant.forget(model_id, key="one"), range(50))]
    assert {answer.status_code for answer in answers} <= {202, 409}
    ids = {answer.json()["id"] for answer in answers if answer.status_code == 202}
    assert len(ids) == 1
    assert tenant.count(tables.Request) == 1


def test_F7_a_failed_post_is_not_remembered(tenant: Tenant, model_id: str) -> None:
    missing = {"type": "record_ids", "record_ids": ["nobody"]}
    assert tenant.forget(model_id, missing, key="one").status_code == 422
    assert tenant.forget(model_id, key="one").status_code == 202


def test_F8_records_not_found(tenant: Tenant, model_id: str) -> None:
    forget = {"type": "record_ids", "record_ids": ["r0", "secret-1", "secret-2"]}
    answer = tenant.forget(model_id, forget)
    problem = assert_problem(answer, 422, "records_not_found")
    assert problem["num_missing"] == 2
    assert "secret" not in answer.text
    assert (
        tenant.forget(model_id, forget | {"ignore_missing": True}).json()["counts"]["num_missing"]
        == 2
    )


def test_F9_duplicate_ids(tenant: Tenant, model_id: str) -> None:
    forget = {"type": "record_ids", "record_ids": ["r0", "r1", "r0", "r0"]}
    counts = tenant.forget(model_id, forget).json()["counts"]
    assert counts["num_records"] == 2
    assert counts["num_duplicates"] == 2


def test_F10_many_ids_inline(tenant: Tenant, model_id: str) -> None:
    forget = {"type": "record_ids", "record_ids": [f"record-{n}" for n in range(10**5)]}
    assert_problem(tenant.forget(model_id, forget), 413, "payload_too_large")


def test_F11_already_forgotten(tenant: Tenant, model_id: str) -> None:
    first = tenant.forget(model_id).json()
    tenant.publish(first["job_id"])
    answer = tenant.forget(model_id, {"type": "record_ids", "record_ids": ["r0", "r1"]})
    assert answer.status_code == 202
    assert answer.json()["counts"]["num_already_applied"] == 1
    again = tenant.forget(model_id).json()
    assert again["counts"]["num_already_applied"] == 1
    assert (again["status"], again["outcome"]) == ("completed", "no_influence")
    assert tenant.get(f"/jobs/{again['job_id']}").json()["status"] == "succeeded"


def test_F12_deleted_model(tenant: Tenant, model_id: str) -> None:
    assert tenant.call("DELETE", f"/models/{model_id}").status_code == 204
    assert_problem(tenant.forget(model_id), 409, "model_not_active")


def test_F13_cancel_a_finished_request(tenant: Tenant, model_id: str) -> None:
    request = tenant.forget(model_id).json()
    tenant.publish(request["job_id"])
    answer = tenant.call("DELETE", f"/unlearn-requests/{request['id']}")
    assert_problem(answer, 409, "state_conflict")


def test_F14_cancel_twice(tenant: Tenant, model_id: str) -> None:
    request = tenant.forget(model_id).json()
    answers = [tenant.call("DELETE", f"/unlearn-requests/{request['id']}") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["status"] == "cancelled"
    assert tenant.get(f"/jobs/{request['job_id']}").json()["status"] == "cancelled"


@pytest.mark.parametrize("path", ["/unlearn-requests", "/jobs", "/models", "/datasets"])
def test_F17_cursor_edited_or_foreign(tenant: Tenant, other: Tenant, path: str) -> None:
    for who in (tenant, other):
        model_id = who.ready_model()
        for number in (0, 1):
            who.forget(
                model_id, {"type": "record_ids", "record_ids": [f"r{number}"]}, policy="exact"
            )
        who.ready_model()
        who.ready_dataset()
    cursor = tenant.get(f"{path}?limit=1").json()["next_cursor"]
    assert tenant.get(f"{path}?limit=1&after={cursor}").status_code == 200
    edited = ("a" if cursor[0] != "a" else "b") + cursor[1:]
    for wrong in (edited, "x", other.get(f"{path}?limit=1").json()["next_cursor"]):
        answer = tenant.get(f"{path}?limit=1&after={wrong}")
        assert_problem(answer, 400, "cursor_invalid")


def test_F18_queue_quota(tenant: Tenant, model_id: str, settings: Settings) -> None:
    session.configure(settings.model_copy(update={"max_queued_jobs": 1}))
    first = tenant.forget(model_id, seed=1)
    assert first.status_code == 202
    for refused in (
        tenant.forget(model_id, seed=2),
        tenant.call("POST", f"/models/{model_id}/reference-bank", json={}),
        tenant.upload("/datasets", files.parquet(), {"name": "d"}),
        tenant.post_model(dataset_id=tenant.made["dataset"]),
    ):
        problem = assert_problem(refused, 429, "queue_quota_exceeded", scratch=tenant.scratch)
        assert problem["retryable"] is True
        assert int(refused.headers["retry-after"]) > 0
    assert tenant.count(tables.Request) == 1
    assert tenant.forget(model_id, seed=1).json()["job_id"] == first.json()["job_id"]
    with transaction() as writer:
        claim = jobs.claim(writer, first.json()["job_id"], "w")
    assert claim is not None
    assert tenant.forget(model_id, seed=2).status_code == 202


def test_F18_requests_that_share_a_job_are_counted(
    tenant: Tenant, other: Tenant, model_id: str, settings: Settings
) -> None:
    theirs = other.ready_model()
    session.configure(settings.model_copy(update={"max_open_requests": 2}))
    taken = [tenant.forget(model_id) for _ in range(2)]
    assert len({each.json()["job_id"] for each in taken}) == 1
    refused = tenant.forget(model_id)
    assert_problem(refused, 429, "request_quota_exceeded")
    assert int(refused.headers["retry-after"]) > 0
    assert tenant.forget(model_id, {"type": "subject", "subject_ref": "x"}).status_code == 202
    assert other.forget(theirs).status_code == 202
    with transaction() as writer:
        claim = jobs.claim(writer, taken[0].json()["job_id"], "w")
    assert claim is not None
    assert tenant.forget(model_id).status_code == 429
    with transaction() as writer:
        jobs.cancelled(writer, claim)
    assert tenant.forget(model_id).status_code == 202


def test_F18_the_quota_is_one_tenants(
    tenant: Tenant, other: Tenant, model_id: str, settings: Settings
) -> None:
    theirs = other.ready_model()
    session.configure(settings.model_copy(update={"max_queued_jobs": 1}))
    assert [tenant.forget(model_id, seed=n).status_code for n in (1, 2)] == [202, 429]
    assert other.forget(theirs).status_code == 202


def test_F19_failed_verification(tenant: Tenant, model_id: str) -> None:
    """No rung passed its gates: nothing is published, and a person must act."""
    request = tenant.forget(model_id).json()
    with transaction() as writer:
        claim = jobs.claim(writer, request["job_id"], "w")
        assert claim is not None
        jobs.exhaust(writer, claim, code="ladder_exhausted", detail="no rung passed", rungs=[])
    found = tenant.get(f"/unlearn-requests/{request['id']}").json()
    assert (found["status"], found["outcome"]) == ("needs_attention", "not_erased")
    assert found["problem"]["code"] == "ladder_exhausted"
    serving = tenant.get(f"/models/{model_id}/versions/@serving").json()
    assert (serving["number"], serving["status"]) == (1, "ready")
    checkpoint = f"/models/{model_id}/versions/@serving/checkpoint"
    assert tenant.get(checkpoint).status_code == 200


def test_what_came_back_of_an_earlier_request_is_shown(tenant: Tenant, model_id: str) -> None:
    gate = unmeasured("membership_auc", "forgetting", "auc", (0.45, 0.55), "reported", "none")
    rung = Rung(
        index=0,
        unlearner={"name": "retrain"},
        exact=True,
        status="published",
        reason="exact; forgotten before, and recognised again: req_a",
        earlier={"req_a": [gate]},
    ).model_dump(mode="json")
    request = tenant.forget(model_id).json()
    with transaction() as writer:
        claim = jobs.claim(writer, request["job_id"], "w")
        assert claim is not None
        factories.publish(writer, claim, rungs=[rung], reason=rung["reason"])
    result = tenant.get(f"/jobs/{request['job_id']}").json()["result"]
    assert result["reason"].endswith("recognised again: req_a")
    assert result["rungs_tried"][0]["earlier"] == {"req_a": [gate.model_dump(mode="json")]}
    version = tenant.get(f"/models/{model_id}/versions/@serving").json()
    assert version["earlier"] == result["rungs_tried"][0]["earlier"]
    assert tenant.get(f"/models/{model_id}/versions/1").json()["earlier"] == {}


NAMES = {
    "sql": "'; drop table models; --",
    "percent": "%s %(a)s 100% _",
    "emoji": "\U0001f47b\U0001f469\u200d\U0001f4bb",
    "rtl": "\u202e\u05e9\u05dc\u05d5\u05dd",
    "four-bytes": "\U00020bb7\U0001d54f",
    "combining": "e\u0301 \ufb01",
}


@pytest.mark.parametrize("row", NAMES)
def test_F20_names_come_back_as_they_were(tenant: Tenant, row: str) -> None:
    name = NAMES[row]
    dataset_id = tenant.ready_dataset(name=name, metadata={name: name})
    found = tenant.get(f"/datasets/{dataset_id}").json()
    assert (found["name"], found["metadata"]) == (name, {name: name})
    model_id = tenant.ready_model(dataset_id=dataset_id, name=name)
    assert tenant.get(f"/models/{model_id}").json()["name"] == name
    made = tenant.forget(model_id, reason=name, metadata={"name": name}).json()
    kept = tenant.get(f"/unlearn-requests/{made['id']}").json()
    assert (kept["reason"], kept["metadata"]) == (name, {"name": name})
    body = {"name": name, "scopes": ["models:read"]}
    assert tenant.call("POST", "/api-keys", json=body).json()["name"] == name


SELECTORS = {
    "no-ids": {"type": "record_ids", "record_ids": []},
    "empty-id": {"type": "record_ids", "record_ids": [""]},
    "long-id": {"type": "record_ids", "record_ids": ["x" * 513]},
    "number-as-id": {"type": "record_ids", "record_ids": [1]},
    "negative-class": {"type": "class", "class": -1},
    "true-as-class": {"type": "class", "class": True},
    "unknown-type": {"type": "everything"},
    "no-type": {"record_ids": ["r0"]},
}


@pytest.mark.parametrize("row", SELECTORS)
def test_selector_refused(tenant: Tenant, model_id: str, row: str) -> None:
    assert_problem(tenant.forget(model_id, SELECTORS[row]), 422, "validation_failed")


OPTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "D10-unknown-unlearner": (
        {"unlearner": {"name": "magic"}},
        "algorithm_unknown",
        "/unlearner/name",
    ),
    "unlearner-option": (
        {"unlearner": {"name": "retrain", "colour": 1}},
        "unknown_field",
        "/unlearner/colour",
    ),
    "D10-unlearner-not-for-policy": (
        {"unlearner": {"name": "ssd"}, "policy": "exact"},
        "algorithm_not_applicable",
        "/unlearner",
    ),
    "unlearner-for-another-network": (
        {"unlearner": {"name": "sisa"}},
        "algorithm_not_applicable",
        "/unlearner",
    ),
    "policy": ({"policy": "hope"}, "validation_failed", "/policy"),
    "batch-size": ({"batch_size": 0}, "validation_failed", "/batch_size"),
    "seed-as-text": ({"seed": "1"}, "validation_failed", "/seed"),
    "time-limit": ({"time_limit_seconds": 0}, "validation_failed", "/time_limit_seconds"),
    "future": (
        {"received_at": (datetime.now(UTC) + timedelta(days=1)).isoformat()},
        "validation_failed",
        "/received_at",
    ),
    "naive-time": ({"received_at": "2026-01-01T00:00:00"}, "validation_failed", "/received_at"),
    "metadata": ({"metadata": {"a": 1}}, "validation_failed", "/metadata/a"),
    "metadata-17": (
        {"metadata": {str(n): "" for n in range(17)}},
        "validation_failed",
        "/metadata",
    ),
}


@pytest.mark.parametrize("row", OPTIONS)
def test_option_refused(tenant: Tenant, model_id: str, row: str) -> None:
    change, code, pointer = OPTIONS[row]
    problem = assert_problem(tenant.forget(model_id, **change), 422, code)
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


def test_D11_seed_beyond_int64(tenant: Tenant, model_id: str) -> None:
    assert_problem(tenant.forget(model_id, seed=2**63), 422, "invalid_number")


def test_D10_approximate_unlearner_without_a_holdout(tenant: Tenant, model_id: str) -> None:
    with transaction() as session:
        session.get_one(tables.Model, (tenant.id, model_id)).holdout_dataset_id = None
    answer = tenant.forget(model_id, unlearner={"name": "fine_tune"})
    assert_problem(answer, 422, "algorithm_not_applicable")


def test_strict_is_unavailable_without_its_audits(
    tenant: Tenant, model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = frozenset({"rmia", "relearn_time"})
    monkeypatch.setattr("core.policies.registered", lambda kind: there)
    answer = tenant.forget(model_id, policy="strict")
    assert "linear_probe" in assert_problem(answer, 422, "policy_unavailable")["detail"]
    there |= {"linear_probe"}
    assert tenant.forget(model_id, policy="strict").status_code == 202


def test_dataset_not_ready(tenant: Tenant) -> None:
    model_id = tenant.model(dataset_id=tenant.dataset())
    answer = tenant.forget(model_id)
    assert_problem(answer, 409, "dataset_not_ready")
    assert "retry-after" in answer.headers


def test_E21_nothing_would_be_retained(tenant: Tenant, model_id: str) -> None:
    forget = {"type": "record_ids", "record_ids": [f"r{n}" for n in range(9)]}
    assert_problem(tenant.forget(model_id, forget), 422, "retain_set_too_small")


def test_E21_all_rows_are_of_the_class(tenant: Tenant) -> None:
    model_id = tenant.ready_model(dataset_id=tenant.ready_dataset(classes=1))
    answer = tenant.forget(model_id, {"type": "class", "class": 0})
    assert assert_problem(answer, 422, "retain_set_too_small")["num_retained"] == 0


def test_class_by_name_and_by_index(tenant: Tenant) -> None:
    dataset_id = tenant.ready_dataset(class_names=["cat", "dog"])
    model_id = tenant.ready_model(dataset_id=dataset_id)
    by_name = tenant.forget(model_id, {"type": "class", "class": "dog"}).json()
    by_index = tenant.forget(model_id, {"type": "class", "class": 1}).json()
    assert by_name["class_index"] == by_index["class_index"] == 1
    wrong = tenant.forget(model_id, {"type": "class", "class": "bird"})
    assert_problem(wrong, 422, "class_unknown")


def test_subject_is_never_shown(tenant: Tenant, model_id: str) -> None:
    answer = tenant.forget(model_id, {"type": "subject", "subject_ref": "person-1"})
    assert answer.json()["counts"]["num_records"] > 0
    unknown = tenant.forget(model_id, {"type": "subject", "subject_ref": "person-99"})
    assert (unknown.status_code, unknown.json()["outcome"]) == (202, "no_influence")
    with reading() as session:
        rows = session.execute(select(tables.Request)).scalars().all()
        stored = session.execute(select(tables.IdempotencyKey)).scalars().all()
    kept = [str(vars(row)) for row in [*rows, *stored]]
    assert not any("person-" in text for text in [*kept, answer.text, unknown.text])


def test_created_request(tenant: Tenant, model_id: str) -> None:
    answer = tenant.forget(f"{model_id}@serving", metadata={"ticket": "P-1"}, reason="asked")
    made = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/unlearn-requests/{made['id']}"
    assert int(answer.headers["retry-after"]) >= 2
    assert made["model"] == model_id
    assert made["status"] == "queued"
    assert made["metadata"] == {"ticket": "P-1"}
    assert made["days_left"] in (27, 28, 29, 30)
    assert tenant.get(made["links"]["self"]).json() == made
    job = tenant.get(made["links"]["job"]).json()
    assert (job["id"], job["requests"], job["status"]) == (made["job_id"], [made["id"]], "queued")


def test_unknown_alias(tenant: Tenant, model_id: str) -> None:
    assert_problem(tenant.forget(f"{model_id}@other"), 404, "not_found")


def test_idempotent_upload(tenant: Tenant) -> None:
    answers = [
        tenant.upload("/datasets", content, {"name": "d"}, Idempotency_Key="one")
        for content in (b"PAR1" + bytes(8) + b"PAR1",) * 2 + (b"PAR1" + bytes(9) + b"PAR1",)
    ]
    assert answers[0].json() == answers[1].json()
    assert answers[1].headers["idempotency-replayed"] == "true"
    assert_problem(answers[2], 422, "idempotency_key_reused", scratch=tenant.scratch)
    with reading() as session:
        assert session.scalar(select(func.count()).select_from(tables.Dataset)) == 1


def test_nothing_is_tried_again_for_a_rejected_model(tenant: Tenant) -> None:
    model_id = tenant.model()
    job_id = tenant.forget(model_id).json()["job_id"]
    with transaction() as session:
        chosen = select(tables.Job.id).where(tables.Job.kind == "prepare")
        held = jobs.claim(session, session.scalars(chosen).one(), "w")
        assert held is not None
        jobs.fail(session, held, "non_finite_weights", "-", retryable=False)
    job = tenant.get(f"/jobs/{job_id}").json()
    assert job["error"]["code"] == "upload_rejected"
    assert "retry" not in job["links"]
    answer = tenant.call("POST", f"/jobs/{job_id}/retry", json={})
    assert_problem(answer, 422, "upload_rejected")
