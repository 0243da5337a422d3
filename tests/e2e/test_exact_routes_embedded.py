"""Unlearners for certain networks through the whole service: the exact routes beside retraining."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from core.unlearners import unlearners
from tests.core.cases import suited
from tests.e2e import story
from tests.e2e.client import Client, Json
from tests.e2e.stack import Embedded
from tests.worlds import (
    World,
    digits_world,
    model_metadata,
    trained,
    write_checkpoint,
    write_dataset,
)

NAMES = [entry.name for entry in unlearners if entry.config.networks]
MODALITIES = {"ridge_head": "features"}
PER_SUBJECT = 10


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_records_and_a_subject_are_forgotten_exactly(name: str, tmp_path: Path) -> None:
    world = suited(name, digits_world(MODALITIES.get(name, "image"), epochs=5))
    stack = Embedded(tmp_path)
    stack.start()
    try:
        with Client(stack.url, stack.key) as client:
            model = _register(client, tmp_path, world)
            records: Json = {"type": "record_ids", "record_ids": world.ids[:20]}
            _forget(client, model, name, "1", records, unlearner={"name": name})
            assert _is_as_if_never_seen(client, model, world, 20)
            # Rows 20 to 29; no unlearner is named, and this one is found.
            subject: Json = {"type": "subject", "subject_ref": "subject-2"}
            _forget(client, model, name, "2", subject, policy="exact")
            assert _is_as_if_never_seen(client, model, world, 30)
    finally:
        assert stack.stop() == {"serve": 0}


def _register(client: Client, folder: Path, world: World) -> str:
    subjects = [f"subject-{row // PER_SUBJECT}" for row in range(len(world.ids))]
    data = write_dataset(world, folder / "digits.parquet", subjects=subjects)
    weights = write_checkpoint(trained(world), folder / "digits.safetensors")
    return story.uploaded(client, data, weights, partial(model_metadata, world))


def _forget(
    client: Client, model: str, name: str, parent: str, forget: Json, **fields: object
) -> None:
    """Have something forgotten by this unlearner, and see it published as exact."""
    request = client.forget(forget["type"], model, forget, **fields)
    version = story.published(client, model, request, parent)
    serving = client.get(f"/models/{model}/versions/@serving")
    assert (serving["id"], serving["outcome"]) == (version, "erased_exact")
    assert client.get(f"/unlearn-requests/{request['id']}")["outcome"] == "erased_exact"
    [rung] = client.get(f"/jobs/{request['job_id']}")["result"]["rungs_tried"]
    assert (rung["unlearner"]["name"], rung["status"]) == (name, "published")


def _is_as_if_never_seen(client: Client, model: str, world: World, gone: int) -> bool:
    """Whether the download is what training without the first ``gone`` records gives."""
    answer = client.http.get(f"/models/{model}/versions/@serving/checkpoint")
    found = load(answer.content)
    without = replace(world, train=world.train.take(range(gone, len(world.train))))
    expected = trained(without).state_dict()
    assert found.keys() == expected.keys()
    return all(torch.allclose(found[key], expected[key], atol=1e-6) for key in expected)
