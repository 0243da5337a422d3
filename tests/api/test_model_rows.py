"""Bad input, rows B and D: safetensors files and architectures."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from app.store import session as sessions
from app.store import tables, workers
from app.store.session import transaction

from . import files
from .files import framed, one, tensors
from .world import Tenant, assert_problem

DATA8 = bytes(8)
HUGE = 2**62


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    return sink.getvalue()


def deep() -> bytes:
    return framed(b'{"a":' * 5000 + b"1" + b"}" * 5000)


def duplicate() -> bytes:
    entry = '"a":{"dtype":"%s","shape":[2],"data_offsets":[0,%d]}'
    return framed(f"{{{entry % ('F32', 8)},{entry % ('F16', 4)}}}".encode(), DATA8)


def many() -> bytes:
    entries = {f"t{n}": one([1], n, n + 1, "U8") for n in range(200_000)}
    return tensors(entries, bytes(200_000))


def named(name: str) -> bytes:
    return tensors({name: one([2], 0, 8)}, DATA8)


def shaped(shape: list[Any]) -> bytes:
    return tensors({"a": one(shape, 0, 8)}, DATA8)


def with_metadata(metadata: Any) -> bytes:
    return tensors({"__metadata__": metadata, "a": one([2], 0, 8)}, DATA8)


HEADER = "safetensors_header"
B_ROWS: dict[str, tuple[Callable[[], bytes], str]] = {
    "B1-empty": (lambda: b"", "model_file_empty"),
    "B2-7-bytes": (lambda: bytes(7), f"{HEADER}_truncated"),
    "B3-length-u64-max": (lambda: framed(b"{}", length=2**64 - 1), f"{HEADER}_too_large"),
    "B4-length-100000001": (lambda: framed(b"{}", length=100_000_001), f"{HEADER}_too_large"),
    "B4-17-MiB": (lambda: framed(b"{" + b" " * 17 * 2**20 + b"}"), f"{HEADER}_too_large"),
    "B5-length-beyond-file": (lambda: framed(b"{}", length=1000), f"{HEADER}_truncated"),
    "B6-length-0": (lambda: framed(b""), f"{HEADER}_invalid"),
    "B7-array": (lambda: framed(b"[]"), f"{HEADER}_invalid"),
    "B8-utf8": (lambda: framed(b'{"\xff": 1}'), f"{HEADER}_invalid"),
    "B9-deep": (deep, f"{HEADER}_invalid"),
    "B10-duplicate": (duplicate, "safetensors_duplicate_key"),
    "B11-overlap": (
        lambda: tensors({"a": one([2], 0, 8), "b": one([2], 4, 12)}, bytes(12)),
        "safetensors_offsets_invalid",
    ),
    "B12-hole": (
        lambda: tensors({"a": one([2], 0, 8), "b": one([2], 12, 20)}, bytes(20)),
        "safetensors_offsets_invalid",
    ),
    "B13-trailing": (lambda: files.weights() + b"more", "safetensors_trailing_data"),
    "B13-polyglot": (lambda: files.weights() + zipped(), "safetensors_trailing_data"),
    "B14-shape-times-dtype": (lambda: shaped([3]), "safetensors_shape_mismatch"),
    "B15-overflow": (lambda: shaped([2**31, 2**31, 2**31]), "safetensors_shape_overflow"),
    "B16-zero-beside-huge": (lambda: shaped([0, HUGE]), "safetensors_dim_too_large"),
    "B17-empty-tensor": (
        lambda: tensors({"a": one([2], 0, 8), "b": one([0], 8, 8)}, DATA8),
        "safetensors_empty_tensor",
    ),
    "B18-negative": (lambda: shaped([-2]), f"{HEADER}_invalid"),
    "B18-float": (lambda: shaped([2.0]), f"{HEADER}_invalid"),
    "B18-string": (lambda: shaped(["2"]), f"{HEADER}_invalid"),
    "B18-bool": (lambda: shaped([True]), f"{HEADER}_invalid"),
    "B19-end-before-begin": (
        lambda: tensors({"a": one([2], 8, 0)}, DATA8),
        "safetensors_offsets_invalid",
    ),
    "B20-dtype": (
        lambda: tensors({"a": one([2], 0, 8, "C64")}, DATA8),
        "safetensors_dtype_unsupported",
    ),
    "B21-metadata": (lambda: with_metadata({"a": 1}), "safetensors_metadata_invalid"),
    "B22-metadata-1-MiB": (
        lambda: with_metadata({"a": "x" * 2**20}),
        "safetensors_metadata_too_large",
    ),
    "B23-200000-tensors": (many, "safetensors_too_many_tensors"),
    "B24-rank-1000": (lambda: shaped([1] * 999 + [2]), "safetensors_rank_too_large"),
    "B25-empty-name": (lambda: named(""), "safetensors_name_invalid"),
    "B25-traversal": (lambda: named("../x"), "safetensors_name_invalid"),
    "B25-nul": (lambda: named("a\x00b"), "safetensors_name_invalid"),
    "B25-10-KiB": (lambda: named("a" * 10_240), "safetensors_name_invalid"),
    "B26-no-tensors": (lambda: framed(b"{}"), "safetensors_no_tensors"),
    "B28-pickle": (lambda: b"\x80\x04\x95" + bytes(64), "media_type_mismatch"),
    "B28-zip": (zipped, "media_type_mismatch"),
    "B29-keys": (lambda: files.weights(more=np.zeros(1, np.float32)), "model_keys_mismatch"),
    "B30-shape": (
        lambda: files.weights(**{"1.bias": np.zeros(3, np.float32)}),
        "model_shape_mismatch",
    ),
    "B30-dtype": (
        lambda: files.weights(**{"1.bias": np.zeros(2, np.float16)}),
        "model_dtype_mismatch",
    ),
}


@pytest.mark.parametrize("row", B_ROWS)
def test_safetensors(tenant: Tenant, row: str) -> None:
    make, code = B_ROWS[row]
    answer = tenant.post_model(make(), filename="m.safetensors")
    assert_problem(answer, 422, code, scratch=tenant.scratch)
    assert tenant.count(tables.Model) == 0


def test_B29_names_are_bounded(tenant: Tenant) -> None:
    more = {f"extra.{n}": np.zeros(1, np.float32) for n in range(500)}
    problem = assert_problem(tenant.post_model(files.weights(**more)), 422, "model_keys_mismatch")
    assert "extra.0" in problem["detail"]
    assert "490 more" in problem["detail"]
    assert len(problem["detail"]) < 1000


VIT = {"name": "vit", "num_classes": 10}
ENSEMBLE = {
    "name": "ensemble",
    "num_classes": 10,
    "members": 64,
    "member": {"name": "mlp", "in_features": 10},
    "shard_key": "0123456789abcdef",
}
D_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "D1-unknown": ({"name": "torchvision/resnet1"}, "architecture_unknown"),
    "D2-hidden-10^9": (
        {"name": "mlp", "in_features": 10, "num_classes": 10, "hidden": [10**9, 10**9]},
        "architecture_too_large",
    ),
    "D3-10^6-layers": (
        {"name": "mlp", "in_features": 10, "num_classes": 10, "hidden": [1] * 10**5},
        "validation_failed",
    ),
    "D4-zero": ({"name": "linear", "in_features": 0, "num_classes": 10}, "validation_failed"),
    "D4-negative": ({"name": "linear", "in_features": -4, "num_classes": 1}, "validation_failed"),
    "D5-heads": (VIT | {"hidden": 65, "heads": 4}, "architecture_invalid"),
    "D6-target": (files.ARCHITECTURE | {"_target_": "os.system"}, "unknown_field"),
    "D6-auto-map": (files.ARCHITECTURE | {"auto_map": {"a": "b"}}, "unknown_field"),
    "D6-trust": (files.ARCHITECTURE | {"trust_remote_code": True}, "unknown_field"),
    "ensemble-of-ensembles": (ENSEMBLE | {"member": ENSEMBLE}, "validation_failed"),
    "ensemble-too-large": (
        ENSEMBLE | {"member": {"name": "mlp", "in_features": 10, "hidden": [10**4, 10**4]}},
        "architecture_too_large",
    ),
    "ensemble-member-option": (
        ENSEMBLE | {"member": {"name": "mlp", "in_features": 10, "auto_map": {}}},
        "validation_failed",
    ),
    "ensemble-member-name": (ENSEMBLE | {"member": {"name": ["mlp"]}}, "validation_failed"),
    "D6-dotted": ({"name": "torch.nn.Linear"}, "architecture_unknown"),
}


@pytest.mark.parametrize("row", D_ROWS)
def test_architecture(tenant: Tenant, row: str) -> None:
    architecture, code = D_ROWS[row]
    answer = tenant.post_model(architecture=architecture)
    problem = assert_problem(answer, 422, code, scratch=tenant.scratch)
    assert tenant.count(tables.Model) == 0
    if code in ("unknown_field", "validation_failed"):
        assert problem["errors"][0]["pointer"].startswith("/architecture/")


def test_D8_more_parameters_than_the_tenants_quota(tenant: Tenant) -> None:
    """What a model takes of the quota it gives back when it is deleted."""
    small = files.PARAMETERS
    sessions.configure(sessions.settings().model_copy(update={"max_tenant_parameters": small}))
    first = tenant.post_model()
    assert first.status_code == 201, first.text
    assert_problem(tenant.post_model(), 422, "quota_model_too_large", scratch=tenant.scratch)
    assert tenant.count(tables.Model) == 1
    assert tenant.call("DELETE", f"/models/{first.json()['id']}").status_code < 300
    assert tenant.post_model().status_code == 201


@pytest.mark.parametrize("spare", [-1, 0])
def test_D12_more_memory_than_any_worker_has(tenant: Tenant, spare: int) -> None:
    """The largest decides; one that does not compute, and one that is gone, do not count."""
    needed = workers.BYTES_PER_PARAMETER * files.PARAMETERS
    with transaction() as session:
        for name, memory in (("small", 1), ("large", needed + spare), ("reader", None)):
            workers.seen(session, name, "celery", 1, memory_bytes=memory)
        workers.seen(session, "gone", "celery", 1, memory_bytes=2 * needed)
        session.get_one(tables.Worker, "gone").seen_at -= 86_400
    answer = tenant.post_model()
    if spare < 0:
        assert_problem(answer, 422, "no_capable_worker", scratch=tenant.scratch)
        assert tenant.count(tables.Model) == 0
    else:
        assert answer.status_code == 201, answer.text


D9_ROWS = {
    "D9-learning-rate": (
        files.RECIPE | {"optimizer": {"name": "sgd", "lr": 1e308}},
        "/recipe/optimizer/lr",
    ),
    "D9-epochs": (files.RECIPE | {"epochs": 10**9}, "/recipe/epochs"),
    "D9-nesterov": (
        files.RECIPE | {"optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True, "momentum": 0}},
        "/recipe/optimizer/nesterov",
    ),
    "D9-batch": (files.RECIPE | {"batch_size": 0}, "/recipe/batch_size"),
}


@pytest.mark.parametrize("row", D9_ROWS)
def test_recipe(tenant: Tenant, row: str) -> None:
    recipe, pointer = D9_ROWS[row]
    answer = tenant.post_model(recipe=recipe)
    problem = assert_problem(answer, 422, "validation_failed", scratch=tenant.scratch)
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


def test_E22_dataset_of_another_tenant(tenant: Tenant, other: Tenant) -> None:
    foreign = other.ready_dataset()
    for place in ("dataset", "holdout"):
        answer = tenant.post_model(**{place if place == "holdout" else "dataset_id": foreign})
        assert_problem(answer, 404, "not_found", scratch=tenant.scratch)
    assert tenant.count(tables.Model) == 0


def test_rejected_dataset_is_named(tenant: Tenant) -> None:
    dataset_id = tenant.dataset()
    with transaction() as session:
        row = session.get_one(tables.Dataset, (tenant.id, dataset_id))
        row.status = "rejected"
        row.rejection = {"code": "dataset_values_invalid", "detail": "a feature is NaN"}
    problem = assert_problem(tenant.post_model(dataset_id=dataset_id), 422, "upload_rejected")
    assert "dataset_values_invalid" in problem["detail"]


def test_registered_model(tenant: Tenant) -> None:
    """What all refusals above are refusals of."""
    dataset_id = tenant.ready_dataset()
    answer = tenant.post_model(
        dataset_id=dataset_id,
    )
    assert answer.status_code == 201
    body = answer.json()
    assert answer.headers["location"] == f"/models/{body['id']}" == body["links"]["self"]
    assert body["latest_version"]["status"] == "validating"
    assert body["latest_version"]["number"] == 1
    assert body["latest_version"]["num_parameters"] == 10
    assert body["recipe"]["optimizer"]["momentum"] == 0.9
    assert tenant.get(f"/models/{body['id']}").json() == body
    assert json.loads(tenant.get("/models").text)["data"] == [body]
    assert list(tenant.scratch.iterdir()) == []
