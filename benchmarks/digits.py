"""The demo's digits and network, registered with a service that is to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worker.demo import digits
from worker.demo.service import Service


@dataclass(frozen=True)
class Registered:
    """A model that is ready, and the training records it can forget."""

    model: str
    dataset: str
    record_ids: list[str]


def register(service: Service, scratch: Path) -> Registered:
    """Train the network, upload data and weights, and wait until the model is prepared."""
    data, weights = scratch / "digits.parquet", scratch / "digits.safetensors"
    record_ids = digits.write_dataset(data)
    digits.train(data, scratch, weights)
    dataset = str(service.upload("/datasets", data, {"name": "digits"})["id"])
    service.wait_ready(f"/datasets/{dataset}", lambda body: str(body["status"]))
    model = str(service.upload("/models", weights, digits.metadata(dataset))["id"])
    await_prepared(service, model)
    return Registered(model, dataset, record_ids)


def await_prepared(service: Service, model: str) -> None:
    """Wait until the newest version of ``model`` is ready and no job is left to run."""
    service.wait_ready(f"/models/{model}", lambda body: str(body["latest_version"]["status"]))
