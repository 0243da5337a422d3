"""What is said of an unlearner's cost, against the records that went through the network."""

from dataclasses import replace

import pytest

from core.methods import METHODS
from core.situation import Situation
from core.unlearners import unlearners
from tests.core import cases

WORLD = cases.noise_world(num_train=1500, num_holdout=100, noise_dims=5)
WORLD = replace(
    WORLD,
    architecture=WORLD.architecture | {"name": "mlp", "hidden": (8,)},
    recipe=WORLD.recipe.model_copy(update={"epochs": 3}),
)
FORGET = cases.first(WORLD, 150)

OPTIONS = {
    "gradient_ascent": {"bounded": False},
    "scrub": {"rewind": False},
    "fine_tune": {"schedule": "one_cycle"},
    "tuned": {"unlearner": {"name": "eupmu", "stop": False}, "values": [0.001, 0.003]},
}
SEARCHED = {"ssd", "influence"}
"""Trials on samples cost what does not grow with the data."""
ELSEWHERE = {name for name in METHODS if unlearners[name].config.networks} | {"unsir"}


def passes(name):
    """Passes that a run takes, and what was expected."""
    seen = []

    def count(_model, inputs, logits):
        seen.append(len(inputs[0]) * (1 if logits.requires_grad else 1 / 3))

    def counted(model):
        model.register_forward_hook(count)
        return model

    given = cases.problem(WORLD, FORGET, fresh=lambda seed: counted(WORLD.fresh(seed)))
    counted(given.model)
    options = OPTIONS.get(name, {})
    config = unlearners[name].config(**options)
    if "stop" in type(config).model_fields:
        config = config.model_copy(update={"stop": False})
    unlearners[name].run(given, config)
    situation = Situation(
        selector="records",
        num_forget=150,
        num_train=1500,
        has_recipe=True,
        has_holdout=True,
        epochs=WORLD.recipe.epochs,
    )
    return sum(seen) / 1500, METHODS[name].cost(situation, options)


@pytest.mark.parametrize("name", sorted(set(METHODS) - SEARCHED - ELSEWHERE))
def test_the_stated_cost_is_what_a_run_takes(name):
    counted, stated = passes(name)
    assert counted == pytest.approx(stated, rel=0.05, abs=0.1)
