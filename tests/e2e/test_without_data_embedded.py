"""Without training data, through the whole service: importance and samples are all it ever sees."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from core import importance, networks, weights
from core.data import Dataset, Preprocessing
from core.device import choose
from tests.e2e.client import Client, Json
from tests.e2e.stack import Embedded
from tests.worker.test_lease import eventually
from worker.demo import digits

NUM_SAMPLES = 40


@pytest.mark.slow
def test_erasure_from_stored_importance_alone(tmp_path: Path, home: Path) -> None:
    stack = Embedded(tmp_path)
    stack.start()
    try:
        with Client(stack.url, stack.key) as client:
            _measure(home, tmp_path / "importance.safetensors")
            data = pq.read_table(home / "digits.parquet")
            model = _register(client, tmp_path, home / "digits.safetensors", data)
            sent = _dataset(client, tmp_path / "sent", _some(data), purpose="forget")
            _forget_class(client, tmp_path, model, data)
            _forget(client, model, sent)
            assert client.get(f"/datasets/{sent}")["status"] == "deleted"
            child = client.wait(f"/models/{model}/versions/2", "status", "ready", "rejected")
            assert child["outcome"] == "erased_approximate"
            blobs = stack.data_dir / "blobs"
            is_alone = eventually(lambda: len([*blobs.rglob("*.parquet")]) == 1, seconds=30.0)
            assert is_alone, "the holdout is all that is left of any record"
    finally:
        assert stack.stop() == {"serve": 0}


def _measure(home: Path, path: Path) -> None:
    """Measure the importance where the data is."""
    model = networks.build(networks.parse(digits.ARCHITECTURE))
    weights.load(home / "digits.safetensors", model)
    dataset = Dataset.open(home / "records.parquet")
    preprocessing = Preprocessing.model_validate(digits.PREPROCESSING)
    records = dataset.records(dataset.rows_in("train"), preprocessing)
    made = importance.estimate(
        model, records, "fisher_persample", batch_size=256, device=choose("auto"), seed=0
    )
    importance.save(made, path)


def _some(data: pa.Table) -> pa.Table:
    return data.filter(pc.field("split") == "train").slice(0, NUM_SAMPLES)


def _dataset(client: Client, path: Path, table: pa.Table, **fields: str) -> str:
    pq.write_table(table, path)
    dataset = str(client.upload("/datasets", path, {"name": "part", **fields})["id"])
    body = client.wait(f"/datasets/{dataset}", "status", "ready", "rejected")
    assert body["status"] == "ready", body
    return dataset


def _register(client: Client, folder: Path, trained: Path, data: pa.Table) -> str:
    """Weights, a holdout and importance: nothing that was trained on leaves home."""
    held_out = data.filter(pc.field("split") == "holdout")
    holdout = _dataset(client, folder / "holdout", held_out)
    metadata = digits.metadata(holdout) | {"dataset": None, "recipe": None}
    made = folder / "importance.safetensors"
    answer = _send(client, trained, metadata, made)
    model = str(answer["id"])
    version = client.wait(f"/models/{model}/versions/1", "status", "ready", "rejected")
    assert version["status"] == "ready", version
    (folder / "broken").write_bytes(b"no importance")
    other = _send(client, trained, metadata, folder / "broken")["id"]
    version = client.wait(f"/models/{other}/versions/1", "status", "ready", "rejected")
    assert version["rejection"]["code"] == "importance_invalid"
    return model


def _send(client: Client, trained: Path, metadata: Json, made: Path) -> Json:
    with trained.open("rb") as file, made.open("rb") as attached:
        answer = client.http.post(
            "/models",
            data={"metadata": json.dumps(metadata)},
            files={"file": file, "importance": attached},
        )
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


CLASS = 3


def _forget_class(client: Client, folder: Path, model: str, data: pa.Table) -> None:
    """A class is forgotten and judged as one; the digits are too few for a gate to pass."""
    train = data.filter(pc.field("split") == "train")
    sent = _dataset(
        client, folder / "class", train.filter(pc.field("label") == CLASS), purpose="forget"
    )
    forget = {"type": "samples", "dataset": sent, "class": CLASS}
    request = client.forget("class", model, forget, policy="standard")
    assert (request["selector"], request["class_index"]) == ("samples", CLASS)
    job = client.job(request["job_id"])
    assert job["status"] == "failed"
    rung = job["result"]["rungs_tried"][0]
    assert rung["unlearner"]["name"] == "ssd"
    targets = [each["target"] for each in rung["tried"] if "target" in each]
    assert targets, rung["tried"]
    assert max(targets) == min(targets) == pytest.approx(0.1), "chance"
    assert {"class_accuracy", "membership_auc"} <= {gate["name"] for gate in rung["gates"]}
    assert client.http.delete(f"/unlearn-requests/{request['id']}").status_code == 202


SSD = {"name": "ssd", "selection": "adaptive", "lam": 5.0}
"""Far from the edges of its gates: the weights move, and no answer on the holdout does."""


def _forget(client: Client, model: str, sent: str) -> None:
    forget = {"type": "samples", "dataset": sent}
    request = client.forget("sent", model, forget, policy="fast", unlearner=SSD)
    job = client.job(request["job_id"])
    assert job["status"] == "succeeded", job.get("error")
    assert client.get(f"/unlearn-requests/{request['id']}")["outcome"] == "erased_approximate"
    tried = job["result"]["rungs_tried"][-1]["tried"]
    assert tried[0]["importance"] == "stored"
