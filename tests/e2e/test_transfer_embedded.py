"""Transfer with the service: rank source classes at home, have the worst dropped, probe again.

Source classes 0 and 1 lie apart where the target's classes do. Classes 2 and 3 lie apart elsewhere
and compete for a hidden layer of one unit.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import nn

from core.data import Preprocessing, Records
from core.recipe import SGD, Recipe
from core.transfer import Source, linear_probe, rank_classes
from core.unlearners import unlearners
from tests.e2e import story
from tests.e2e.client import Client, Json
from tests.e2e.stack import Embedded
from tests.worlds import World, accuracy, model_metadata, trained, write_checkpoint, write_dataset

COUNT = 600
ARCHITECTURE: Json = {
    "name": "mlp",
    "in_features": 6,
    "hidden": (1,),
    "activation": "tanh",
    "num_classes": 4,
}
CHEAP = unlearners.parse({"name": "fine_tune", "epochs": 10, "lr": 0.05})


@pytest.mark.slow
def test_a_harmful_class_is_found_dropped_and_gone(tmp_path: Path) -> None:
    world = source_world()
    home = Source(
        model=trained(world, seed=1),
        fresh=world.fresh,
        records=world.train,
        num_classes=4,
        recipe=world.recipe,
        seed=1,
    )
    train, test = target(200, 5), target(1000, 6)
    worst = rank_classes(home, train, CHEAP)[0]
    assert worst.label in (2, 3)
    assert worst.gain > 0
    stack = Embedded(tmp_path)
    stack.start()
    try:
        with Client(stack.url, stack.key) as client:
            model = _register(client, tmp_path, world, home.model)
            answer = _without(client, model, worst.label)
    finally:
        assert stack.stop() == {"serve": 0}
    published = world.fresh()
    published.load_state_dict(load(answer))
    assert accuracy(published, world.holdout.take(world.holdout.labels == worst.label)) == 0
    before = linear_probe(home, train, test)
    after = linear_probe(replace(home, model=published.eval()), train, test)
    assert after.low > before.high, "the target task gains"


def source_world() -> World:
    """Four blobs in six dimensions, as a data owner has them."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(2 * COUNT) % 4
    centres = torch.zeros(4, 6)
    centres[:2, 0] = torch.tensor([2.0, -2.0])
    centres[2:, 1] = torch.tensor([4.0, -4.0])
    everything = Records(
        images=centres[labels] + torch.randn(2 * COUNT, 6, generator=draw),
        labels=labels,
        rows=torch.arange(2 * COUNT),
        preprocessing=Preprocessing(),
    )
    return World(
        train=everything.take(range(COUNT)),
        holdout=everything.take(range(COUNT, 2 * COUNT)),
        num_classes=4,
        architecture=ARCHITECTURE,
        recipe=Recipe(epochs=15, batch_size=32, optimizer=SGD(lr=0.05), seed=1),
    )


def target(count: int, seed: int) -> Records:
    """Records of another task, which the service never sees."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    values = torch.randn(count, 6, generator=draw)
    values[:, 0] += torch.where(labels == 0, 1.5, -1.5)
    return Records(images=values, labels=labels, rows=torch.arange(count))


def _register(client: Client, folder: Path, world: World, model: nn.Module) -> str:
    data = write_dataset(world, folder / "source.parquet")
    weights = write_checkpoint(model, folder / "source.safetensors")
    return story.uploaded(client, data, weights, partial(model_metadata, world))


def _without(client: Client, model: str, label: int) -> bytes:
    """Have a class dropped; return the published weights."""
    forget = {"type": "class", "class": label}
    request = client.forget("class", model, forget, policy="exact", seed=1)
    story.published(client, model, request, parent="1")
    cost = client.get(f"/jobs/{request['job_id']}")["result"]["cost"]
    assert cost["unlearn_seconds"] > 0, "the time that the transfer takes is told"
    return client.http.get(f"/models/{model}/versions/@serving/checkpoint").content
