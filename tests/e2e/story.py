"""The main job on scikit-learn's digits, as a client lives it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.e2e.client import Client, Json
from worker.demo import digits

FORGOTTEN_CLASS = 8


def main_job(client: Client, home: Path) -> None:
    """Upload, forget a class, then records of the new version, and check what comes back."""
    ids, model = register(client, home)
    first = forget_class(client, model)
    second = forget_records(client, model, ids, parent="2")
    versions = client.get(f"/models/{model}/versions")["data"]
    chain = sorted((version["number"], version["id"], version["parent"]) for version in versions)
    assert [number for number, _, _ in chain] == [1, 2, 3]
    assert [parent for _, _, parent in chain] == [None, chain[0][1], chain[1][1]]
    assert [first, second] == [chain[1][1], chain[2][1]]


def register(client: Client, home: Path) -> tuple[list[str], str]:
    """Upload data and model; return the training record ids and the model's id."""
    data, weights = home / "digits.parquet", home / "digits.safetensors"
    model = uploaded(client, data, weights, digits.metadata)
    records = pq.read_table(data, columns=["id", "split"])
    return records.filter(pc.field("split") == "train")["id"].to_pylist(), model


def uploaded(client: Client, data: Path, weights: Path, metadata: Callable[[str], Json]) -> str:
    """Upload data, and the model that was trained on it; return its id once both are ready.

    Args:
        metadata: of the model, from the id of its dataset.
    """
    dataset = str(client.upload("/datasets", data, {"name": data.stem})["id"])
    body = client.wait(f"/datasets/{dataset}", "status", "ready", "rejected")
    assert body["status"] == "ready", body
    model = str(client.upload("/models", weights, metadata(dataset))["id"])
    version = client.wait(f"/models/{model}/versions/1", "status", "ready", "rejected")
    assert version["status"] == "ready", version
    assert version["digest"] == "sha256:" + hashlib.sha256(weights.read_bytes()).hexdigest()
    return model


def forget_class(client: Client, model: str) -> str:
    """Forget a class; return the id of the new version."""
    forget = {"type": "class", "class": FORGOTTEN_CLASS}
    request = client.forget("class", model, forget, policy="standard")
    again = client.forget("class", model, forget, policy="standard")
    assert again["id"] == request["id"], "the same key is the same request"
    return published(client, model, request, parent="1")


def forget_records(client: Client, model: str, ids: list[str], parent: str) -> str:
    """Forget some records of the version ``parent``; return the id of the next one."""
    forget = {"type": "record_ids", "record_ids": ids[:20]}
    request = client.forget("records", model, forget)
    version = published(client, model, request, parent)
    # Fewer than 200 records: nothing but the exact rung can show that they are gone.
    assert client.get(f"/unlearn-requests/{request['id']}")["outcome"] == "erased_exact"
    return version


def published(client: Client, model: str, request: Json, parent: str) -> str:
    """Follow a request to its new version and check everything that hangs on it."""
    job = client.job(request["job_id"])
    assert job["status"] == "succeeded", job
    result = job["result"]
    assert result["outcome"] in ("erased_exact", "erased_approximate")
    assert result["rungs_tried"][-1]["status"] == "published"
    assert result["rungs_tried"][-1]["gates"], "a published rung shows its gates"
    body = client.get(f"/unlearn-requests/{request['id']}")
    assert body["status"] == "completed"
    version = client.get(f"/models/{model}/versions/{result['version']}")
    assert version["number"] == int(parent) + 1
    assert version["job"] == job["id"]
    checkpoint = job["links"]["checkpoint"]
    assert "sha256:" + client.sha256(checkpoint) == version["digest"]
    old = client.http.get(f"/models/{model}/versions/{parent}/checkpoint")
    assert old.status_code == 410, "superseded weights are withdrawn"
    successor = f"/models/{model}/versions/{version['number']}"
    assert old.headers["Link"] == f'<{successor}>; rel="successor-version"'
    return str(version["id"])
