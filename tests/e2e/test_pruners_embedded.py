"""Every pruner through the whole service: what is published is as sparse as asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import nn

from core import networks
from core.masks import layer_weights, prunable, size
from core.pruners import pruners
from tests.e2e import story
from tests.e2e.client import Client, Json
from tests.e2e.stack import Embedded
from worker.demo import digits

pytestmark = pytest.mark.slow
OPTIONS: dict[str, Json] = {
    "imp": {"rounds": 2, "rate": 0.3, "epochs": 5},
    "omp": {"sparsity": 0.6},
    "synflow": {"sparsity": 0.6, "rounds": 20},
}
DENSITY = {"imp": 0.7**2, "omp": 0.4, "synflow": 0.4}
GENTLY: Json = {"name": "fine_tune", "epochs": 1, "lr": 1e-3}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a service of its own."""
    stack = Embedded(tmp_path_factory.mktemp("pruners"))
    stack.start()
    try:
        with Client(stack.url, stack.key) as client:
            yield client
    finally:
        assert stack.stop() == {"serve": 0}


@pytest.mark.parametrize("name", [entry.name for entry in pruners])
def test_what_is_published_is_sparse(name: str, client: Client, home: Path) -> None:
    ids, model = story.register(client, home)
    keeps_parent = pruners[name].config.keeps_parent
    first = "omp" if keeps_parent else name
    prune: Json = {"name": first, **OPTIONS[first]}
    _forget(client, model, ids[:20], "1", {"prune": prune, "then": {"name": "retrain"}})
    sparse = _download(client, model)
    total = size(prunable(sparse))
    assert _zeros(prunable(sparse)) == total - round(total * DENSITY[first])
    if keeps_parent:
        changes = {"prune": {"name": name}, "then": GENTLY}
        _forget(client, model, ids[20:40], "2", changes, policy="fast")
        after = layer_weights(_download(client, model))
        for key, weight in layer_weights(sparse).items():
            assert torch.equal(after[key] == 0, weight == 0), key
            assert not torch.equal(after[key], weight), "the others were trained"


def _forget(
    client: Client, model: str, ids: list[str], parent: str, changes: Json, **fields: str
) -> None:
    """Have records forgotten by prune_first, and see the new version published."""
    forget = {"type": "record_ids", "record_ids": ids}
    unlearner = {"name": "prune_first", **changes}
    request = client.forget(f"{model} {parent}", model, forget, unlearner=unlearner, **fields)
    story.published(client, model, request, parent)


def _download(client: Client, model: str) -> nn.Module:
    """The version in force, in a network of its own: plain tensors under their plain names."""
    answer = client.http.get(f"/models/{model}/versions/@serving/checkpoint")
    assert answer.status_code == 200
    network = networks.build(networks.parse(digits.ARCHITECTURE))
    network.load_state_dict(load(answer.content))
    return network


def _zeros(weights: dict[str, nn.Parameter]) -> int:
    return sum(int((weight == 0).sum()) for weight in weights.values())
