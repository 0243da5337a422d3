"""Networks of timm and transformers through the whole service: registered, unlearned, delivered."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from core import networks, weights
from core.data import Dataset, Preprocessing
from core.device import choose
from core.ingest import ingest
from core.recipe import Recipe
from core.training import fit
from tests.e2e.client import Client, Json
from tests.e2e.stack import Embedded
from worker.demo import digits

pytestmark = pytest.mark.slow
RECIPE: Json = {
    "epochs": 20,
    "batch_size": 64,
    "optimizer": {"name": "adamw", "lr": 3e-3},
    "schedule": {"name": "one_cycle"},
    "seed": 7,
}
VIT: Json = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
}
ARCHITECTURES: dict[str, Json] = {
    "timm": {"name": "timm/test_resnet", "num_classes": 10, "in_channels": 1},
    "transformers": {"name": "transformers/vit", "num_classes": 10, "config": VIT},
}


def trained(folder: Path, architecture: Json) -> Any:
    """Train where the data is, with the library alone."""
    source = folder / "digits.parquet"
    ids = digits.write_dataset(source)
    (folder / "home").mkdir()
    ingest(source=source, out=folder / "home", max_records=10_000)
    data = Dataset.open(folder / "home" / "records.parquet")
    preprocessing = Preprocessing.model_validate(digits.PREPROCESSING)
    records = data.records(data.rows_in("train"), preprocessing)
    model = networks.build(networks.parse(architecture), seed=7)
    recipe = Recipe.model_validate(RECIPE)
    fit(model, records, recipe, seed=7, device=choose("auto"))
    return model, ids


def sharded(client: Client, folder: Path, model: Any) -> tuple[Json, Json]:
    """Save as transformers does, upload every file; return the config and the source."""
    model.save_pretrained(folder, max_shard_size="40KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert len(names) > 1
    uploads = {name: {"type": "upload", "id": upload(client, folder / name)} for name in names}
    config = json.loads((folder / "config.json").read_text())
    return config, {"type": "shards", "index": index, "files": uploads}


def upload(client: Client, file: Path) -> str:
    content = file.read_bytes()
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": str(len(content)),
        "Content-Type": "application/offset+octet-stream",
    }
    answer = client.http.post("/uploads", content=content, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.mark.parametrize("extra", ARCHITECTURES)
def test_a_request_against_an_extra(extra: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(extra) is None:
        pytest.skip(f"the extra {extra} is not installed")
    model, ids = trained(tmp_path, ARCHITECTURES[extra])
    stack = Embedded(tmp_path)
    stack.start()
    try:
        with Client(stack.url, stack.key) as client:
            dataset = str(
                client.upload("/datasets", tmp_path / "digits.parquet", {"name": "digits"})["id"]
            )
            client.wait(f"/datasets/{dataset}", "status", "ready", "rejected")
            model_id = register(client, tmp_path, dataset, extra, model)
            version = client.wait(
                f"/models/{model_id}/versions/1", "status", "ready", "rejected", seconds=300
            )
            assert version["status"] == "ready", version
            forget = {"type": "record_ids", "record_ids": ids[:20]}
            asked = client.forget("one", model_id, forget, policy="exact")
            job = client.job(asked["job_id"], seconds=600)
            assert job["status"] == "succeeded", job
            child = client.get(f"/models/{model_id}/versions/@serving")
            assert child["outcome"] == "erased_exact"
            delivered(client, model_id, tmp_path, model)
    finally:
        assert stack.stop() == {"serve": 0}


def register(client: Client, folder: Path, dataset: str, extra: str, model: Any) -> str:
    """Register the model: from one file, or from shards with the config beside them."""
    metadata = digits.metadata(dataset) | {
        "architecture": ARCHITECTURES[extra],
        "recipe": RECIPE,
    }
    if extra == "timm":
        weights.save(model, folder / "model.safetensors")
        return str(client.upload("/models", folder / "model.safetensors", metadata)["id"])
    config, source = sharded(client, folder / "saved", model)
    architecture = ARCHITECTURES[extra] | {"config": config}
    answer = client.http.post(
        "/models", json=metadata | {"architecture": architecture, "source": source}
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def delivered(client: Client, model_id: str, folder: Path, model: Any) -> None:
    """The checkpoint has the package's names, and other weights."""
    answer = client.http.get(f"/models/{model_id}/versions/@serving/checkpoint")
    (folder / "unlearned").write_bytes(answer.content)
    tensors = load_file(folder / "unlearned")
    before = model.state_dict()
    assert tensors.keys() == before.keys()
    assert any(not tensors[name].equal(before[name]) for name in tensors)
