"""Tiny real models and many requests on them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits

from core import networks, weights
from core.data import Preprocessing, Records
from core.device import choose
from core.training import Recipe, fit
from tests.e2e.client import Client, Json

FEATURES = 64
ARCHITECTURE = {"name": "mlp", "in_features": FEATURES, "hidden": [32], "num_classes": 10}
PREPROCESSING = {"scale": 1 / 16}
NUM_RECORDS = 400
RECORDS_PER_SUBJECT = 5
PATIENCE_SECONDS = 600.0


def recipe(epochs: int) -> Json:
    """How the tiny models were trained."""
    return {
        "epochs": epochs,
        "batch_size": 20,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "seed": 3,
    }


@dataclass
class World:
    """What was uploaded and what was asked for.

    Args:
        client: of the service under test.
        folder: for the files that are uploaded.
        rng: decides everything that is random here.
        epochs: of each training, and so how long a job lasts.
    """

    client: Client
    folder: Path
    rng: random.Random
    epochs: int
    most: int = 4
    """Records of one request."""
    alike: int = 6
    """Requests with one seed: those share a job while it is queued, others do not."""
    models: list[str] = field(default_factory=list)
    acknowledged: dict[str, tuple[str, Json]] = field(default_factory=dict)
    """Request id -> model id and selector."""
    digest: str = ""
    """SHA-256 of the model that is uploaded, in hex."""
    _left: dict[str, list[str]] = field(default_factory=dict)

    def build(self, num_models: int) -> None:
        """Upload one dataset and some models on it, and wait until they are ready."""
        made = self.upload(num_models)
        for model in made:
            version = self._settled(f"/models/{model}/versions/1")
            assert version["status"] == "ready", version
        self.models += made

    def upload(self, num_models: int) -> list[str]:
        """Upload one dataset and some models on it; return the models, which are not ready yet."""
        data, file = self.folder / "tiny.parquet", self.folder / "tiny.safetensors"
        ids = write_dataset(data)
        self.digest = train(file, recipe(3))
        dataset = self.client.upload("/datasets", data, {"name": "tiny"})["id"]
        read = self._settled(f"/datasets/{dataset}")
        assert read["status"] == "ready", read
        made = []
        for number in range(num_models):
            body = self.client.upload("/models", file, self._metadata(f"m{number}", dataset))
            made.append(body["id"])
            self._left[body["id"]] = list(ids)
        return made

    def ask(self, num_requests: int, mend: Callable[[], None] | None = None) -> None:
        """Ask every model to forget some records, as many times as given.

        Args:
            num_requests: of each model.
            mend: called when a service did not answer; the same call is then made again.
        """
        for _ in range(num_requests):
            for model in self.models:
                ids = [self._left[model].pop() for _ in range(self.rng.randint(1, self.most))]
                self._insist(model, {"type": "record_ids", "record_ids": ids}, mend)

    def _insist(self, model: str, forget: Json, mend: Callable[[], None] | None) -> None:
        while True:
            try:
                return self.forget(model, forget)
            except httpx.TransportError:
                if mend is None:
                    raise
                mend()

    def forget(self, model: str, forget: Json) -> None:
        """Ask one model to forget what is selected."""
        number = len(self.acknowledged)
        body = self.client.forget(
            f"request-{number}",
            model,
            forget,
            policy="exact",
            seed=number // self.alike,
        )
        self.acknowledged[body["id"]] = (model, forget)

    def _settled(self, path: str) -> Json:
        return self.client.wait(path, "status", "ready", "rejected", seconds=PATIENCE_SECONDS)

    def _metadata(self, name: str, dataset: str) -> Json:
        return {
            "name": name,
            "architecture": ARCHITECTURE,
            "preprocessing": PREPROCESSING,
            "recipe": recipe(self.epochs),
            "dataset": dataset,
            "holdout": dataset,
        }


def write_dataset(path: Path) -> list[str]:
    """Write the digits as a dataset is uploaded; return the ids of the training records."""
    digits = load_digits()
    count = 2 * NUM_RECORDS
    ids = [f"r{row:04d}" for row in range(count)]
    table = {
        "id": ids,
        "label": pa.array(digits.target[:count], pa.int64()),
        "features": pa.array(list(digits.data[:count]), pa.list_(pa.float32())),
        "subject": [f"s{row // RECORDS_PER_SUBJECT:03d}" for row in range(count)],
        "split": ["train"] * NUM_RECORDS + ["holdout"] * NUM_RECORDS,
    }
    pq.write_table(pa.table(table), path)
    return ids[:NUM_RECORDS]


def records() -> Records:
    """The training records, without a service in between."""
    digits = load_digits()
    return Records(
        images=torch.tensor(digits.data[:NUM_RECORDS], dtype=torch.float32),
        labels=torch.tensor(digits.target[:NUM_RECORDS]),
        rows=torch.from_numpy(np.arange(NUM_RECORDS)),
        preprocessing=Preprocessing.model_validate(PREPROCESSING),
    )


def train(path: Path, raw_recipe: Json) -> str:
    """Write a model as it is uploaded; return the SHA-256 of the file in hex."""
    model = networks.build(networks.parse(ARCHITECTURE), seed=3)
    fit(model, records(), Recipe.model_validate(raw_recipe), seed=3, device=choose("cpu"))
    return weights.save(model, path)
