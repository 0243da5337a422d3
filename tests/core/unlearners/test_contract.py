"""What every registered unlearner keeps."""

import dataclasses
import sys

import pytest
import torch

from core import weights
from core.errors import Infeasible, InvalidInput, MissingEvidence, OutOfTime
from core.masks import apply_masks, holds, layer_weights
from core.scores import change
from core.unlearners import unlearners
from tests.core import cases

NAMES = unlearners.names()

OPTIONS = {
    "ssd": {"selection": "adaptive"},
    "fine_tune": {"epochs": 2},
    "prune_first": {
        "prune": {"name": "omp", "sparsity": 0.5, "epochs": 2},
        "then": {"name": "fine_tune", "epochs": 2},
    },
    "tuned": {"unlearner": {"name": "eupmu", "epochs": 2}, "values": [0.003, 0.03]},
}
"""The guarded search may rightly refuse a tiny world; its own tests see to it."""


def config(name):
    return unlearners[name].config(**OPTIONS.get(name, {}))


def unlearned(name, **changes):
    problem = cases.small_problem(name, **changes)
    return problem, unlearners[name].run(problem, config(name))


@pytest.mark.parametrize("name", NAMES)
def test_it_changes_parameters_and_keeps_their_shape(name):
    parent = cases.small_problem(name).model
    _, model = unlearned(name)
    found = change(parent, model)
    assert found.relative > 1e-6
    assert found.non_finite == 0
    before, after = parent.state_dict(), model.state_dict()
    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {
        n: (t.shape, t.dtype) for n, t in before.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_progress_rises_and_ends_at_one(name):
    seen = []
    unlearned(name, progress=lambda fraction, metrics: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[-1] == 1


@pytest.mark.parametrize("name", NAMES)
def test_it_stops_when_its_time_is_spent(name):
    with pytest.raises(OutOfTime):
        unlearned(name, deadline=0.0)


def test_an_empty_forget_set_is_refused():
    world = cases.small_world()
    with pytest.raises(MissingEvidence, match="empty"):
        cases.problem(world, cases.first(world, 0))


@pytest.mark.parametrize(
    ("name", "need"),
    [(name, need) for name in NAMES for need in unlearners[name].config().all_needs],
)
def test_what_it_needs_is_missed(name, need):
    missing = {
        "retain": ({"retain": None}, MissingEvidence),
        "recipe": ({"recipe": None}, MissingEvidence),
        "holdout": ({"tuning": None}, MissingEvidence),
        "importance": ({"importance": None, "retain": None}, MissingEvidence),
        "class": ({"selector": "records"}, Infeasible),
        "images": ({"forget": cases.small_problem("retrain").forget}, InvalidInput),
    }
    changes, error = missing[need]
    problem = dataclasses.replace(cases.small_problem(name), **changes)
    with pytest.raises(error):
        unlearners[name].run(problem, unlearners[name].config())


@pytest.mark.parametrize("name", [n for n in NAMES if unlearners[n].config.networks])
def test_another_network_is_refused(name):
    with pytest.raises(InvalidInput) as caught:
        unlearners[name].run(cases.small_problem("retrain"), config(name))
    assert caught.value.code == "architecture_invalid"


@pytest.mark.parametrize("name", NAMES)
def test_the_global_generator_does_not_matter(name):
    torch.manual_seed(1)
    _, first = unlearned(name)
    torch.manual_seed(2)
    _, second = unlearned(name)
    assert weights.equal(first, second)


@pytest.mark.parametrize("given", ["sparse", "dense"])
@pytest.mark.parametrize("name", [n for n in NAMES if not unlearners[n].config.networks])
def test_pruned_weights_stay_exactly_zero(name, given):
    parent = cases.small_problem(name).model
    draw = torch.Generator().manual_seed(3)
    masks = {
        key: torch.rand(value.shape, generator=draw) < 0.5
        for key, value in layer_weights(parent).items()
    }
    if given == "sparse":
        apply_masks(parent, masks)
    _, model = unlearned(name, masks=masks, model=parent)
    assert holds(model, masks)
    rest = [p.detach()[masks[key]] for key, p in layer_weights(model).items()]
    assert torch.cat(rest).count_nonzero() > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_config_survives_json_and_says_everything(name):
    entry = unlearners[name]
    made = config(name)
    assert entry.config.model_validate_json(made.model_dump_json()) == made
    schema = entry.config.model_json_schema()
    fields = {field: info for field, info in schema["properties"].items() if field != "name"}
    assert all(info.get("description") for info in fields.values())
    assert entry.summary
    assert entry.config.source
    for word in ("Source:", "Differs:", "Cost:", "Promise:"):
        assert word in sys.modules[entry.run.__module__].__doc__
