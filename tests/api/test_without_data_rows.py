"""Models without their training data, and requests that bring their records: every refusal."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from httpx2 import Response

from app.store import jobs, tables
from app.store.blobs import blobs
from app.store.session import reading, settings, transaction

from . import files
from .world import Tenant, assert_problem


def post(
    tenant: Tenant, importance: bytes | None = b"importance", part: str = "", **changes: Any
) -> Response:
    """Register a model without its dataset."""
    held_out = tenant.made.setdefault("held out", tenant.ready_dataset())
    metadata = tenant.metadata(held_out, **({"dataset": None, "recipe": None} | changes))
    parts = [
        ("metadata", ("m.json", json.dumps(metadata).encode(), "application/json")),
        ("file", ("f.bin", files.weights(), "application/octet-stream")),
    ]
    if importance is not None:
        name = part or "importance"
        parts.append((name, ("i.bin", importance, "application/octet-stream")))
    return tenant.call("POST", "/models", files=parts)


@pytest.fixture
def model_id(tenant: Tenant) -> str:
    answer = post(tenant)
    assert answer.status_code == 201, answer.text
    found = str(answer.json()["id"])
    tenant.set_version(found, status="ready", prepared_at=datetime.now(UTC))
    tenant.finish_jobs(tables.Job.model_id == found)
    return found


def samples(tenant: Tenant, prefix: str = "s", **metadata: Any) -> str:
    """A dataset sent to be forgotten, with ids that the holdout has not."""
    found = tenant.ready_dataset(**({"purpose": "forget"} | metadata))
    with transaction() as session:
        rows = session.query(tables.Record).where(tables.Record.dataset_id == found)
        for row in rows:
            row.record_id = prefix + row.record_id
    return found


def selector(dataset_id: str) -> dict[str, Any]:
    return {"type": "samples", "dataset": dataset_id}


def test_the_importance_is_kept_with_the_version(tenant: Tenant) -> None:
    answer = post(tenant)
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert body["dataset"] is None
    assert "dataset" not in body["links"]
    with reading() as session:
        version = session.get_one(tables.Version, (tenant.id, body["latest_version"]["id"]))
        assert version.importance_blob is not None
        assert blobs().path(version.importance_blob).read_bytes() == b"importance"
    assert list(tenant.scratch.iterdir()) == []


@pytest.mark.parametrize("dataset", [None, "absent"])
def test_neither_dataset_nor_importance(tenant: Tenant, dataset: str | None) -> None:
    answer = post(tenant, None) if dataset is None else _without_dataset(tenant)
    problem = assert_problem(answer, 422, "dataset_missing", scratch=tenant.scratch)
    assert problem["errors"][0]["pointer"] == "/dataset"
    assert tenant.count(tables.Model) == 0


def _without_dataset(tenant: Tenant) -> Response:
    metadata = tenant.metadata("")
    del metadata["dataset"], metadata["holdout"]
    return tenant.upload("/models", files.weights(), metadata)


def test_both(tenant: Tenant) -> None:
    answer = post(tenant, dataset=tenant.ready_dataset())
    assert_problem(answer, 422, "importance_redundant", scratch=tenant.scratch)
    left = [path for path in blobs().root.rglob("*.attached") if path.is_file()]
    assert left == [], "what came along is taken away, too"


def test_a_raw_body_cannot_carry_it(tenant: Tenant) -> None:
    metadata = tenant.metadata(tenant.ready_dataset(), dataset=None)
    headers = {
        "Content-Type": "application/octet-stream",
        "X-Model-Metadata": base64.b64encode(json.dumps(metadata).encode()).decode(),
    }
    answer = tenant.call("POST", "/models", content=files.weights(), headers=headers)
    problem = assert_problem(answer, 422, "dataset_missing", scratch=tenant.scratch)
    assert "raw body" in problem["detail"]


def test_other_parts_stay_unknown(tenant: Tenant) -> None:
    answer = post(tenant, part="more")
    assert_problem(answer, 422, "unknown_field", scratch=tenant.scratch)


def test_datasets_take_no_importance(tenant: Tenant) -> None:
    parts = [
        ("metadata", ("m.json", b'{"name": "x"}', "application/json")),
        ("importance", ("i.bin", b"i", "application/octet-stream")),
    ]
    answer = tenant.call("POST", "/datasets", files=parts)
    assert_problem(answer, 422, "unknown_field", scratch=tenant.scratch)


def test_importance_past_the_limit(tenant: Tenant) -> None:
    answer = post(tenant, bytes(settings().max_model_bytes + 1))
    assert_problem(answer, 413, "payload_too_large", scratch=tenant.scratch)


def test_importance_is_part_of_what_is_replayed(tenant: Tenant) -> None:
    tenant.made["held out"] = tenant.ready_dataset()
    metadata = json.dumps(tenant.metadata(tenant.made["held out"], dataset=None)).encode()

    def send(importance: bytes) -> Response:
        parts = {
            "metadata": ("m.json", metadata, "application/json"),
            "file": ("f.bin", files.weights(), "application/octet-stream"),
            "importance": ("i.bin", importance, "application/octet-stream"),
        }
        return tenant.call("POST", "/models", files=parts, headers={"Idempotency-Key": "one"})

    first, again, other = send(b"a"), send(b"a"), send(b"b")
    assert first.json() == again.json()
    assert_problem(other, 422, "idempotency_key_reused", scratch=tenant.scratch)
    sha256 = hashlib.sha256(b"a").hexdigest()
    assert len(list(blobs().root.rglob(f"{sha256}-*-attached"))) == 1


def test_samples_are_taken(tenant: Tenant, model_id: str) -> None:
    sent = samples(tenant)
    answer = tenant.forget(model_id, selector(sent), policy="fast", purpose="poison_removal")
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert (body["selector"], body["samples"]) == ("samples", sent)
    assert body["purpose"] == "poison_removal"
    assert body["counts"]["num_records"] == 10
    assert body["links"]["samples"] == f"/datasets/{sent}"
    assert_problem(tenant.forget(model_id, selector(sent)), 409, "in_use")
    assert_problem(tenant.call("DELETE", f"/datasets/{sent}"), 409, "in_use")
    assert tenant.call("DELETE", f"/unlearn-requests/{body['id']}").status_code < 300
    assert tenant.get(f"/datasets/{sent}").json()["status"] == "deleted"
    assert_problem(tenant.forget(model_id, selector(sent)), 404, "not_found")


RECOMMEND = "/unlearners/recommend"
OTHERS = [
    {"type": "record_ids", "record_ids": ["r0"]},
    {"type": "subject", "subject_ref": "person-0"},
    {"type": "class", "class": 0},
]


def both_ways(tenant: Tenant, model_id: str, forget: dict[str, Any]) -> list[Response]:
    """Ask for it, and ask what would be tried."""
    body = {"model": model_id, "forget": forget}
    return [tenant.forget(model_id, forget), tenant.call("POST", RECOMMEND, json=body)]


@pytest.mark.parametrize("forget", OTHERS, ids=lambda each: each["type"])
def test_nothing_can_be_looked_up(tenant: Tenant, model_id: str, forget: dict[str, Any]) -> None:
    for answer in both_ways(tenant, model_id, forget):
        problem = assert_problem(answer, 422, "selector_not_applicable")
        assert problem["errors"][0]["pointer"] == "/forget/type"


def test_samples_only_where_there_is_no_data(tenant: Tenant) -> None:
    ordinary, sent = tenant.ready_model(), samples(tenant)
    for answer in both_ways(tenant, ordinary, selector(sent)):
        assert_problem(answer, 422, "selector_not_applicable")


@pytest.mark.parametrize("purpose", [None, "train"])
def test_samples_of_another_purpose(tenant: Tenant, model_id: str, purpose: str | None) -> None:
    for answer in both_ways(tenant, model_id, selector(samples(tenant, purpose=purpose))):
        assert_problem(answer, 422, "dataset_purpose_mismatch")


def test_samples_of_another_tenant(tenant: Tenant, other: Tenant, model_id: str) -> None:
    for each in (samples(other), "dst_01JD0000000000000000000000", "x"):
        for answer in both_ways(tenant, model_id, selector(each)):
            assert_problem(answer, 404, "not_found")


def test_samples_that_are_not_read_yet(tenant: Tenant, model_id: str) -> None:
    sent = tenant.dataset(purpose="forget")
    for answer in both_ways(tenant, model_id, selector(sent)):
        assert_problem(answer, 409, "dataset_not_ready")
        assert answer.headers["retry-after"] == "2"


def test_samples_from_the_holdout(tenant: Tenant, model_id: str) -> None:
    for answer in both_ways(tenant, model_id, selector(samples(tenant, prefix=""))):
        assert_problem(answer, 422, "holdout_overlap")


def test_unlearners_that_need_the_data(tenant: Tenant, model_id: str) -> None:
    sent = selector(samples(tenant))
    answer = tenant.forget(model_id, sent, policy="exact")
    assert_problem(answer, 422, "dataset_missing")
    answer = tenant.forget(model_id, sent, unlearner={"name": "fine_tune"})
    assert_problem(answer, 422, "algorithm_not_applicable")


def test_importance_of_another_estimator(tenant: Tenant, model_id: str) -> None:
    stored = {"estimator": "mas", "num_records": 10, "stale": 0}
    tenant.set_version(model_id, importance=stored)
    assert tenant.get(f"/models/{model_id}").json()["latest_version"]["importance"] == stored
    sent = selector(samples(tenant))
    zeros = {"name": "prune_first", "prune": {"name": "zeros"}}
    for wanted in (
        {"name": "ssd"},
        {"name": "ssd", "estimator": "batch", "alpha": 2.0},
        {**zeros, "then": {"name": "ssd"}},
    ):
        answer = tenant.forget(model_id, sent, unlearner=wanted)
        problem = assert_problem(answer, 422, "algorithm_not_applicable")
        assert problem["missing"] == "importance"
    wanted = {**zeros, "then": {"name": "ssd", "estimator": "mas"}}
    assert tenant.forget(model_id, sent, unlearner=wanted).status_code == 202


def test_importance_that_went_with_an_earlier_request(tenant: Tenant, model_id: str) -> None:
    tenant.set_version(model_id, importance_blob=None)
    sent = selector(samples(tenant))
    problem = assert_problem(tenant.forget(model_id, sent), 422, "dataset_missing")
    assert "register the version as a new model" in problem["detail"]
    answer = tenant.forget(model_id, sent, unlearner={"name": "ssd"})
    assert assert_problem(answer, 422, "algorithm_not_applicable")["missing"] == "importance"


def of_one_class(tenant: Tenant, label: int = 1, **metadata: Any) -> str:
    found = samples(tenant, **metadata)
    with transaction() as session:
        rows = session.query(tables.Record).where(tables.Record.dataset_id == found)
        for row in rows.where(tables.Record.split == "train"):
            row.label = label
    return found


def test_samples_that_are_a_class(tenant: Tenant, model_id: str) -> None:
    sent = selector(of_one_class(tenant)) | {"class": 1}
    asked, told = both_ways(tenant, model_id, sent)
    assert asked.status_code == 202, asked.text
    body = asked.json()
    assert (body["selector"], body["class_index"]) == ("samples", 1)
    with transaction() as session:
        claim = jobs.claim(session, body["job_id"], "w")
    assert claim is not None
    assert (claim.selector, claim.forget_classes) == ("class", (1,))
    assert told.status_code == 409, "the first has them"
    another = selector(of_one_class(tenant, prefix="t")) | {"class": 1}
    told = tenant.call("POST", RECOMMEND, json={"model": model_id, "forget": another})
    assert told.json()["candidates"][0]["unlearner"]["name"] == "ssd"


@pytest.mark.parametrize(
    ("label", "code"), [(0, "class_mismatch"), (7, "class_unknown"), ("bird", "class_unknown")]
)
def test_samples_that_are_not_the_class(
    tenant: Tenant, model_id: str, label: int | str, code: str
) -> None:
    for answer in both_ways(tenant, model_id, selector(samples(tenant)) | {"class": label}):
        problem = assert_problem(answer, 422, code)
        assert problem["errors"][0]["pointer"] == "/forget/class"


def test_evidence_needs_the_data(tenant: Tenant, model_id: str) -> None:
    for path in ("reference-bank", "versions/1/oracle", "versions/1/audits"):
        answer = tenant.call("POST", f"/models/{model_id}/{path}", json={})
        assert_problem(answer, 422, "dataset_missing")


def test_what_would_be_tried(tenant: Tenant, model_id: str) -> None:
    body = {"model": model_id, "forget": selector(samples(tenant))}
    answer = tenant.call("POST", RECOMMEND, json=body)
    assert answer.status_code == 200, answer.text
    assert "ssd" in {each["unlearner"]["name"] for each in answer.json()["candidates"]}


def test_purposes(tenant: Tenant) -> None:
    ordinary = tenant.ready_model()
    assert tenant.forget(ordinary).json()["purpose"] == "erasure"
    assert_problem(tenant.forget(ordinary, purpose="fun"), 422, "validation_failed")


def test_digest_of_the_part(tenant: Tenant) -> None:
    metadata = json.dumps(tenant.metadata(tenant.ready_dataset(), dataset=None)).encode()

    def send(digest: bytes) -> Response:
        value = f"sha-256=:{base64.b64encode(digest).decode()}:"
        part = ("i.bin", b"importance", "application/octet-stream", {"Repr-Digest": value})
        parts: Any = {
            "metadata": ("m.json", metadata, "application/json"),
            "file": ("f.bin", files.weights(), "application/octet-stream"),
            "importance": part,
        }
        return tenant.call("POST", "/models", files=parts)

    assert_problem(send(bytes(32)), 422, "checksum_mismatch", scratch=tenant.scratch)
    assert send(hashlib.sha256(b"importance").digest()).status_code == 201
