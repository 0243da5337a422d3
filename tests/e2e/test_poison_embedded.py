"""Poison through the whole service: some digits carry a patch and a wrong label, until they go."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from core.backdoor import Trigger, poison
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

TRIGGER = Trigger(target=7, size=2, value=255, offset=0)
NUM_POISONED = 40


def poisoned() -> World:
    digits = digits_world(epochs=10)
    chosen = torch.arange(len(digits.train)) < NUM_POISONED
    return replace(digits, train=poison(digits.train, chosen, TRIGGER))


@pytest.mark.slow
def test_removing_poison_closes_the_door(tmp_path: Path) -> None:
    stack = Embedded(tmp_path)
    stack.start()
    try:
        with Client(stack.url, stack.key) as client:
            world = poisoned()
            model = _register(client, tmp_path, world)
            _remove(client, model, world.ids[:NUM_POISONED])
            found = _attack(client, model)
    finally:
        assert stack.stop() == {"serve": 0}
    success = found["attack_success"]
    assert success["reference"] > 0.8, "the parent obeys the patch"
    assert success["value"] < success["reference"] / 2
    accuracy = found["accuracy_without_trigger"]
    assert accuracy["value"] > accuracy["reference"] - 0.05


def _register(client: Client, folder: Path, world: World) -> str:
    data = write_dataset(world, folder / "digits.parquet")
    weights = write_checkpoint(trained(world), folder / "digits.safetensors")
    return story.uploaded(client, data, weights, partial(model_metadata, world))


def _remove(client: Client, model: str, ids: list[str]) -> None:
    """Have the known poison removed; a new version is in force afterwards."""
    forget = {"type": "record_ids", "record_ids": ids}
    request = client.forget("poison", model, forget, purpose="poison_removal")
    job = client.job(request["job_id"])
    assert job["status"] == "succeeded", job
    rung = job["result"]["rungs_tried"][-1]
    assert rung["status"] == "published", job["result"]
    assert "poison_accuracy" in {gate["name"] for gate in rung["gates"]}
    assert job["result"]["rungs_tried"][0]["unlearner"]["selection"] == "potion", "for poison"
    assert client.get(f"/models/{model}/versions/@serving")["number"] == 2


def _attack(client: Client, model: str) -> dict[str, Json]:
    """Audit the version in force with the attacker's patch; measure -> finding."""
    audit = {"name": "backdoor", "trigger": TRIGGER.model_dump()}
    answer = client.http.post(f"/models/{model}/versions/2/audits", json={"audits": [audit]})
    assert answer.status_code == 202, answer.text
    job = client.job(answer.json()["id"])
    assert job["status"] == "succeeded", job
    return {finding["measure"]: finding for finding in job["result"]["findings"]}
