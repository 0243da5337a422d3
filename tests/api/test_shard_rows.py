"""Sharded checkpoints: files that are named one by one, and the index that says what is where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from httpx2 import Response
from safetensors.numpy import load, save

from app.settings import Settings
from app.store import session, tables
from app.store.blobs import blobs

from . import files
from .world import Tenant, assert_problem

TENSORS = load(files.weights(**{"1.weight": np.arange(8, dtype=np.float32).reshape(2, 4)}))
FIRST, SECOND = save({"1.weight": TENSORS["1.weight"]}), save({"1.bias": TENSORS["1.bias"]})
WEIGHT_MAP = {"1.weight": "m-1", "1.bias": "m-2"}


def source(tenant: Tenant, weight_map: dict[str, str] = WEIGHT_MAP, **total: int) -> dict[str, Any]:
    """Two uploaded files with their index."""
    uploads = {"m-1": tenant.finished_upload(FIRST), "m-2": tenant.finished_upload(SECOND)}
    return {
        "type": "shards",
        "index": {"weight_map": weight_map, "metadata": total or None},
        "files": {name: {"type": "upload", "id": each} for name, each in uploads.items()},
    }


def create(tenant: Tenant, source: dict[str, Any], **more: Any) -> Response:
    body = tenant.metadata(tenant.ready_dataset()) | {"source": source} | more
    return tenant.call("POST", "/models", json=body)


def test_shards_become_one_checkpoint(tenant: Tenant) -> None:
    given = source(tenant, total_size=40, total_parameters=10)
    answer = create(tenant, given)
    assert answer.status_code == 201, answer.text
    path = f"/models/{answer.json()['id']}/versions/1"
    version = tenant.get(path).json()
    with session.reading() as reader:
        row = reader.get_one(tables.Version, (tenant.id, version["id"]))
        with blobs().open(row.blob) as stored:
            content = b"".join(stored.chunks(0, stored.size))
    assert content == save(TENSORS)
    assert list(tenant.scratch.iterdir()) == []
    again = create(tenant, given)
    assert_problem(again, 410, "upload_used")


ROWS: dict[str, tuple[dict[str, Any], int, str]] = {
    "other-file": ({"weight_map": {"1.weight": "m-2", "1.bias": "m-1"}}, 422, "shards_mismatch"),
    "file-not-named": ({"weight_map": {"1.weight": "m-1"}}, 422, "shards_mismatch"),
    "total": ({"total_size": 41}, 422, "shards_mismatch"),
    "no-tensors": ({"weight_map": {}}, 422, "validation_failed"),
}


@pytest.mark.parametrize("row", ROWS)
def test_refused(tenant: Tenant, row: str) -> None:
    change, status, code = ROWS[row]
    answer = create(tenant, source(tenant, **change))
    assert_problem(answer, status, code, scratch=tenant.scratch)
    assert tenant.count(tables.Model) == 0


def test_the_network_is_compared_with_the_whole(tenant: Tenant) -> None:
    architecture = files.ARCHITECTURE | {"num_classes": 3}
    answer = create(tenant, source(tenant), architecture=architecture)
    assert_problem(answer, 422, "model_shape_mismatch", scratch=tenant.scratch)


def test_all_files_together_are_as_large_as_one(tenant: Tenant, settings: Settings) -> None:
    given = source(tenant)
    dataset = tenant.metadata(tenant.ready_dataset())
    limit = {"max_model_bytes": max(len(FIRST), len(SECOND)) + 1}
    session.configure(settings.model_copy(update=limit))
    answer = tenant.call("POST", "/models", json=dataset | {"source": given})
    assert_problem(answer, 413, "payload_too_large", scratch=tenant.scratch)


def test_a_refused_call_uses_no_file_up(tenant: Tenant) -> None:
    given = source(tenant)
    wrong = given | {"index": {"weight_map": {"1.weight": "m-2", "1.bias": "m-1"}}}
    assert create(tenant, wrong).status_code == 422
    assert create(tenant, given).status_code == 201


def test_a_dataset_has_no_shards(tenant: Tenant) -> None:
    answer = tenant.call("POST", "/datasets", json={"name": "d", "source": source(tenant)})
    assert_problem(answer, 422, "validation_failed", scratch=tenant.scratch)
